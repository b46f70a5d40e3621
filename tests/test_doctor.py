"""Every condition that keeps a preset from running is broken, and the line that says so is read."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kava.cli import main
from kava.config import load_config
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY
from kava.device import GIB
from kava.doctor import cpu_time, machine, software
from kava.doctor.check import Check
from kava.doctor.sources import sources

CONFIG = str(REPOSITORY / "config.yaml")
REFERENCE = "qwen2.5-8gb"
PROJECT = {"requires-python": ">=3.11,<3.14", "dependencies": ["torch>=2.9", "zarr>=3.1"]}


def config(preset: str = "demo", **settings):
    return load_config(None, {"preset": preset, **settings})


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_demo_runs_on_a_machine_without_gpu_and_network(capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"]
    checks = {check["name"]: check for check in found["checks"]}
    assert list(checks) == [
        "python", "packages", "snakemake", "configuration", "teacher", "student", "data", "hub", "pair", "prompts",
        "torch", "gpu", "bitsandbytes", "memory", "disk",
    ]  # fmt: skip
    assert {check["status"] for check in found["checks"]} <= {"ok", "warning"}
    assert checks["hub"]["told"].startswith("not needed")
    assert checks["teacher"]["told"] == "kava:teacher, on this machine"
    assert "agrees with dequantised weights" in checks["bitsandbytes"]["told"]


def test_a_preset_that_cannot_run_is_status_1_with_one_line_each(capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "disk", lambda *_: [machine.ok("disk", "enough")])  # its own test is below
    assert main(["doctor", "--preset", REFERENCE]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("fail") for line in lines) == 2
    assert lines[-1] == "cannot run here: hub, gpu"
    (teacher,) = (line for line in lines if " teacher " in line)
    assert teacher.startswith("warning")
    assert teacher.endswith(f"run `kava fetch --preset {REFERENCE}`")
    (hub,) = (line for line in lines if " hub " in line)
    assert hub.endswith(f"`unset HF_HUB_OFFLINE`, then `kava fetch --preset {REFERENCE}`")


def test_a_model_directory_that_is_not_there_is_a_line_too(capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["doctor", "--set", "teacher.model=./gone"]) == 1
    assert "fail     configuration model directory ./gone does not exist" in capsys.readouterr().out


def test_a_torch_that_cannot_be_imported_is_a_line(capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delattr("kava.doctor.machine")
    monkeypatch.setitem(sys.modules, "kava.doctor.machine", None)
    assert main(["doctor"]) == 1
    assert "fail     torch         cannot be imported" in capsys.readouterr().out


def test_python_out_of_range() -> None:
    assert "KAVA needs >=3.99" in software.python(PROJECT | {"requires-python": ">=3.99"}).message
    assert software.python(PROJECT).status == "ok"


def test_packages_off_their_pins_warn_and_out_of_their_range_fail(monkeypatch, tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# pins\ntorch==2.13.0\nzarr==3.1.6\nnever-installed==1.0\n")
    installed = {"torch": "2.13.0+cu130", "zarr": "3.1.6"}

    def version(name: str) -> str:
        if name not in installed:
            raise software.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(software, "version", version)
    assert software.packages(PROJECT, pins).status == "ok"  # a build for CUDA is the pinned version
    installed["zarr"] = "3.2.0"
    check = software.packages(PROJECT, pins)
    assert (check.status, check.message) == ("warning", "zarr 3.2.0 (pinned 3.1.6) not as tested")
    assert "pip install --constraint constraints.txt" in str(check.fix)
    installed["torch"] = "2.5.0"
    assert software.packages(PROJECT, pins).message == "torch 2.5.0 (needed >=2.9)"
    del installed["torch"]
    assert software.packages(PROJECT, pins) == software.fail("packages", "torch is not installed", software.INSTALL)


def test_no_profile_no_snakefile_and_an_executor_that_is_not_installed(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    check = software.snakemake(tmp_path)
    assert check.status == "warning"
    assert check.message.endswith("no workflow beside the installed package")
    (tmp_path / "workflow").mkdir()
    check = software.snakemake(tmp_path)
    assert (check.status, check.fix) == ("warning", "run `git checkout workflow`")
    for name, text in (("default", "rerun-incomplete: true"), ("grid", "executor: grid")):
        folder = tmp_path / "workflow" / "profiles" / name
        folder.mkdir(parents=True)
        (folder / "profile.yaml").write_text(text)
    check = software.snakemake(tmp_path)
    assert check.message.startswith("no Snakefile in")
    (tmp_path / "Snakefile").write_text("")
    check = software.snakemake(tmp_path)
    assert check.status == "ok"
    assert check.message.endswith("profiles default, grid (grid needs snakemake-executor-plugin-grid)")
    monkeypatch.setattr(software, "_public", lambda _: None)
    assert software.snakemake(tmp_path) == software.fail("snakemake", "is not installed", software.INSTALL)


def test_missing_cuda_fails_where_the_configuration_needs_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine, "_driver", lambda: "580.95")
    assert by_name(machine.gpu(config()))["gpu"].status == "ok"
    on_cpu = by_name(machine.gpu(config(REFERENCE, device="cpu")))["gpu"]
    assert on_cpu.message.startswith("not needed: device is cpu; the run takes about ")
    assert (on_cpu.status, on_cpu.fix) == ("warning", "set device: auto on a machine with a GPU")
    named = by_name(machine.gpu(config(device="cuda")))["gpu"]
    assert named.status == "fail"
    assert "driver 580.95, and no GPU that torch sees, and device is cuda; look with `nvidia-smi`" in str(named)
    paged = by_name(machine.gpu(config(REFERENCE)))["gpu"]
    assert paged.status == "fail"
    assert "paged_adamw_8bit in pretrain and distill needs one" in str(paged)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "torch is built without CUDA" in str(by_name(machine.gpu(config(device="cuda")))["gpu"])
    monkeypatch.setattr(machine, "_driver", lambda: None)
    assert "no NVIDIA GPU that a driver shows" in str(by_name(machine.gpu(config(device="cuda")))["gpu"])


@pytest.mark.parametrize(
    ("gflops", "steps", "seconds", "status", "said"),
    [
        # At half of 10 GFLOP/s: 611 s for the teacher over 60 examples of 71.8 tokens, 815 for four models' answers,
        # 5,718 for two arms' steps at 8 operations per parameter and token, 160 for ten processes and 100 forwards.
        (10, 25, 7304, "ok", "about 2 hours"),
        (1000, 25, 231, "ok", "about 4 minutes"),
        (10, 250, 58_900, "warning", "about 16 hours"),
        (1, 250, 588_000, "warning", "about 7 days"),
    ],
)
def test_a_run_on_a_cpu_is_told_in_minutes_hours_or_days(
    monkeypatch, gflops: float, steps: int, seconds: float, status: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_driver", lambda: None)
    monkeypatch.setattr(cpu_time, "flops_per_second", lambda _: 1e9 * gflops)
    data = {"kind": "demo", "train": 50, "validation": 10, "test": 10}
    arms = {"flat": None, "structured": {"pretrain_projector": False}}
    settings = config("gpt2", data=data, arms=arms, distill={"steps": steps})
    assert cpu_time.run_seconds(settings) == pytest.approx(seconds, rel=0.01)
    found = by_name(machine.gpu(settings))["gpu"]
    assert found.status == status
    assert f"the run takes {said} on this CPU" in found.message


def test_a_rate_is_measured_once_and_is_that_of_some_cpu() -> None:
    rate = cpu_time.flops_per_second("float32")
    assert 1e8 < rate < 1e13
    assert cpu_time.flops_per_second("float32") == rate


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5, "about 2 minutes"), (18 * 60, "about 18 minutes"), (5000, "about 83 minutes"), (5500, "about 2 hours"),
     (9e4, "about 25 hours"), (3e5, "about 3 days"), (1.2e7, "about 140 days")],
)  # fmt: skip
def test_an_estimate_has_no_more_digits_than_it_is_worth(seconds: float, said: str) -> None:
    assert cpu_time.roughly(seconds) == said


@pytest.mark.parametrize(
    ("free", "total", "status", "told"),
    [
        (7.4, 7.7, "ok", "7.4 of 7.7 GiB free"),
        (3, 8, "fail", "7 are torch's share"),
        (5, 6, "fail", "vram_budget_gib is 8"),
    ],
)
def test_a_gpu_that_is_full_or_small(monkeypatch, free: float, total: float, status: str, told: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * GIB), int(total * GIB)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 4060")
    monkeypatch.setattr(machine, "_driver", lambda: "580.95")
    check = by_name(machine.gpu(config(REFERENCE)))["gpu"]
    assert check.status == status
    assert "RTX 4060, driver 580.95" in check.message
    assert told in check.message


def test_bitsandbytes_that_computes_something_else_or_nothing(monkeypatch) -> None:
    assert machine.matmul_error("cpu") < machine.TOLERANCE
    monkeypatch.setattr(machine, "matmul_error", lambda _: 0.7)
    wrong = machine.bitsandbytes(config())
    assert (wrong.status, wrong.message) == ("fail", "4-bit matmul on cpu is wrong by 0.7")

    def broken(_: str) -> float:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(machine, "matmul_error", broken)
    assert "fails on cpu (no kernel image is available)" in machine.bitsandbytes(config()).message
    unneeded = machine.bitsandbytes(config(teacher={"quantization": "none"}))
    assert unneeded.status == "warning"
    monkeypatch.setattr(machine, "matmul_error", lambda _: {}[0])
    optimizer = machine.bitsandbytes(config(teacher={"quantization": "none"}, distill={"optimizer": "adamw_8bit"}))
    assert "fails on cpu (0)" in optimizer.message
    assert str(optimizer.fix).endswith("or set distill.optimizer: adamw")


def test_a_full_disk_and_too_little_memory(monkeypatch) -> None:
    plan = Jobs(config(data={"train": 20, "validation": 5, "test": 5}))
    (disk,) = machine.disk(plan, None)
    assert disk.status == machine.memory(plan).status == "ok"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    (full,) = machine.disk(plan, 0)
    assert full.status == "fail"
    assert full.message.endswith("1.0 MB free")
    assert "point cache_dir (the store) or HF_HOME (downloads) to another disk" in str(full.fix)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2_000_000, total=4_000_000))
    assert machine.memory(plan).status == "warning"
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=500_000, total=1_000_000))
    assert machine.memory(plan).status == "fail"


def test_each_disk_is_measured_against_what_goes_there(monkeypatch, tmp_path: Path) -> None:
    plan = Jobs(config(cache_dir=str(tmp_path / "cache"), data={"train": 20, "validation": 5, "test": 5}))
    other, hub = tmp_path / "elsewhere", tmp_path / "hub"
    plan.results = other
    for folder in (other, hub):
        folder.mkdir()
    monkeypatch.setattr(machine.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1e9 if folder != hub else 5e6))
    monkeypatch.setattr(machine, "nearest_folder", lambda folder: Device(folder))
    store, results, downloads = machine.disk(plan, 6_000_000)
    assert store.message.endswith("cache, 1.0 GB free")
    assert "elsewhere" in results.message
    assert (downloads.status, downloads.message) == ("fail", f"6.0 MB needed in {hub}, 5.0 MB free")


class Device(type(Path())):
    """A folder on a disk of its own."""

    def stat(self, **_: bool) -> SimpleNamespace:
        return SimpleNamespace(st_dev=str(self))


def test_a_family_that_is_not_known_and_another_tokenizer_are_told_before_a_run(tmp_path: Path) -> None:
    found = by_name(sources(config(), "kava fetch").checks)["pair"]
    assert (found.status, found.message) == ("ok", "qwen2 teaches qwen2, with one tokenizer")
    for kind in ("teacher", "student"):
        shutil.copytree(REPOSITORY / "kava" / "demo" / kind, tmp_path / kind)
    pair = {kind: {"model": str(tmp_path / kind)} for kind in ("teacher", "student")}
    tokenizer = tmp_path / "student" / "tokenizer.json"
    whole = tokenizer.read_text()
    other = json.loads(whole)
    other["model"]["vocab"]["another"] = other["model"]["vocab"].pop("¤")
    tokenizer.write_text(json.dumps(other))
    found = by_name(sources(config(**pair), "kava fetch").checks)["pair"]
    assert found.status == "fail"
    assert "tokenizers share 416 of 417 tokens (not, for example, 'another')" in found.message
    tokenizer.write_text(whole)
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "gpt_neox"}')
    found = by_name(sources(config(**pair), "kava fetch").checks)["pair"]
    assert "keys before RoPE are not known for model type 'gpt_neox'" in found.message
    assert found.fix == "set kv.keys: post_rope"


def test_a_damaged_model_and_missing_data_are_lines_of_their_own(tmp_path: Path) -> None:
    teacher, student, data = (tmp_path / name for name in ("teacher", "student", "data"))
    for folder in (teacher, student, data):
        folder.mkdir()
    for folder in (teacher, student):
        (folder / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes(b"torn")
    (student / "pytorch_model.bin").write_bytes(b"")
    settings = config(
        teacher={"model": str(teacher)}, student={"model": str(student)}, data={"kind": "gsm8k", "path": str(data)}
    )
    found = by_name(sources(settings, "kava fetch").checks)
    assert {name: check.status for name, check in found.items()} == {
        "teacher": "fail", "student": "fail", "data": "fail", "hub": "ok",
    }  # fmt: skip
    assert "model.safetensors is damaged" in found["teacher"].message
    assert "its weights are pytorch_model.bin" in found["student"].message
    assert "has no train split" in found["data"].message
