"""`kava fetch` against a mirror on this machine: broken off, finished, and then all without a network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hub_server import Mirror, serving

from kava.config.load import REPOSITORY

pytestmark = pytest.mark.slow

MODEL, DATA = "a" * 40, "b" * 40
# Downloads are written to disk in pieces of this size (huggingface_hub), from which they go on.
PIECE = 10 << 20
SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json")

OFFLINE = """
import sys, torch
from kava.cli import main
from kava.doctor.sources import sources
from kava.config import load_config
from kava.models.load import load_teacher
overrides = {json!r}
config = load_config(None, overrides)
for check in sources(config, "kava fetch").checks:
    print(check.name, check.status)
assert main(["tokenize", "--configfile", {file!r}]) == 0
teacher = load_teacher(config.teacher, torch.device("cpu"))
print(type(teacher).__name__, type(teacher.model.layers[0].self_attn.k_proj).__name__)
"""

REFUSED = """
import sys
from kava.config import load_config
from kava.config.models import ModelSettings
from kava.doctor.sources import sources
from kava.errors import UserError
from kava.models.load import load_model_config, load_tokenizer
import torch
from kava.models.load import load_student
for name in ("org/gated", "org/nobody", "org/pickle"):
    try:
        load_student(ModelSettings(model=name, revision="a" * 40), torch.device("cpu"))
    except UserError as error:
        print(error)
try:
    load_tokenizer(ModelSettings(model="org/model", revision="c" * 40))
except UserError as error:
    print(error)
data = {"kind": "gsm8k", "path": "org/rows", "revision": "b" * 40}
for name in ("org/model", "org/pickle", "org/gated"):
    config = load_config(None, {"data": data, "student": {"model": name, "revision": "a" * 40}})
    print(*sources(config, "kava fetch").checks, sep="\\n")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tinystories: Path, gsm8k: Path) -> dict[tuple[str, str], tuple[str, Path]]:
    """A real tokenizer with random weights of some pieces, real questions as Parquet, and a model that is a pickle."""
    from transformers import AutoConfig, AutoModelForCausalLM

    root = tmp_path_factory.mktemp("hub")
    model = shutil.copytree(tinystories, root / "model")
    config = AutoConfig.from_pretrained(tinystories)
    config.update({"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4})
    config.update({"head_dim": 64})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model)
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.safetensors").write_bytes(b"not read")
    (model / "tf_model.h5").write_bytes(b"not read")
    assert (model / "model.safetensors").stat().st_size > 2 * PIECE
    data = root / "data"
    (data / "main").mkdir(parents=True)
    for split in ("train", "test"):
        lines = (gsm8k / f"{split}.jsonl").read_text().splitlines()[:40]
        rows = [json.loads(line) for line in lines]
        Dataset.from_list(rows).to_parquet(data / "main" / f"{split}-00000-of-00001.parquet")
    pickle = shutil.copytree(tinystories, root / "pickle")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    return {
        ("models", "org/model"): (MODEL, model),
        ("models", "org/gated"): (MODEL, model),
        ("models", "org/pickle"): (MODEL, pickle),
        ("datasets", "org/rows"): (DATA, data),
    }


def settings(folder: Path) -> dict:
    model = {"model": "org/model", "revision": MODEL}
    return {
        "teacher": model,
        "student": model,
        "data": {"kind": "gsm8k", "path": "org/rows", "revision": DATA, "validation": 4, "train": 20, "test": 5},
        "max_length": 512,
        "cache_dir": str(folder / "cache"),
    }


def environment(folder: Path, **changes: str) -> dict[str, str]:
    of_tests = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return (
        of_tests | {"HF_HOME": str(folder / "hub"), "PYTHONPATH": str(REPOSITORY), "HF_HUB_DISABLE_XET": "1"} | changes
    )


def fetch(folder: Path, mirror: Mirror) -> subprocess.Popen[str]:
    file = folder / "config.yaml"
    file.write_text(json.dumps(settings(folder)))
    return subprocess.Popen(
        [sys.executable, "-m", "kava", "fetch", "--configfile", str(file)],
        env=environment(folder, HF_ENDPOINT=mirror.url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def python(code: str, folder: Path, **changes: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(folder, **changes), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_download_that_broke_off_goes_on_and_the_run_then_needs_no_network(folders, tmp_path: Path) -> None:
    with serving(Mirror(folders, stall={"model.safetensors": PIECE + 1000})) as mirror:
        broken = fetch(tmp_path, mirror)
        until = time.monotonic() + 60
        while not {"model.safetensors", *SMALL} <= mirror.sent.keys() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)  # what was sent last is written
        broken.send_signal(signal.SIGKILL)
        broken.communicate()
        before = len(mirror.asked)

        # A file that a full disk or a copy has cut short is found by its size.
        (cut_short,) = (tmp_path / "hub").rglob("snapshots/*/tokenizer.json")
        os.truncate(cut_short.resolve(), 5000)
        # Of a fetch that was killed whole files are left; where a connection breaks, it goes on from there.
        mirror.cut["model.safetensors"] = 2 * PIECE + 1000
        finished = fetch(tmp_path, mirror)
        output, _ = finished.communicate(timeout=100)
        assert finished.returncode == 0, output
        assert "teacher: org/model at aaaaaaaaaaaa" in output
        assert "HF_HUB_OFFLINE=1 now runs it without a network" in output
        after = mirror.asked[before:]
        assert [first for name, first in after if name == "model.safetensors"] == [0, 2 * PIECE]
        assert ("tokenizer.json", 0) in after
        assert not {name for name, _ in after} & {"config.json", "tokenizer_config.json"}, "what is whole stays"
        assert {name for name, _ in mirror.asked} >= {"README.md", "main/train-00000-of-00001.parquet"}
        assert not {name for name, _ in mirror.asked} & {"onnx/model.safetensors", "tf_model.h5"}

    code = OFFLINE.format(json=settings(tmp_path), file=str(tmp_path / "config.yaml"))
    output = python(code, tmp_path, HF_HUB_OFFLINE="1", HF_ENDPOINT=mirror.url)
    for line in ("teacher ok", "student ok", "data ok", "hub ok", "LlamaForCausalLM Linear4bit"):
        assert line in output
    (manifest,) = (tmp_path / "cache" / "tokens").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["splits"]["test"]["examples"] == 5


def test_what_the_hub_refuses_ends_in_one_sentence(folders, tmp_path: Path) -> None:
    with serving(Mirror(folders, gated={"org/gated"})) as mirror:
        lines = python(REFUSED, tmp_path, HF_ENDPOINT=mirror.url).splitlines()
    assert "org/gated is gated: ask for access on" in lines[0]
    assert f"org/nobody is not on {mirror.url}: correct its name" in lines[1]
    assert "org/pickle at aaaaaaaaaaaa has no weights as model.safetensors" in lines[2]
    assert f"has no commit {'c' * 40}" in lines[3]
    doctor = {line.split()[1]: line for line in lines[4:8]}
    assert doctor["student"].startswith("warning")
    assert doctor["student"].endswith("not in the hub's cache, or not whole; run `kava fetch`")
    told = f"ok       hub           {mirror.url} answers, and has all of them, "
    assert re.fullmatch(re.escape(told) + r"\d+\.\d MB to come", doctor["hub"])
    assert "fail     hub           model org/pickle at aaaaaaaaaaaa has no weights as model.safetensors" in lines[11]
    assert "fail     hub           model org/gated is gated; ask for access on" in lines[-1]
