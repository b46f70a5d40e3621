"""`kava bench train` and `kava bench memory`: both ways train the same, nothing is left behind, memory is counted."""

import gc
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import tiny_model

from kava.bench import memory, stage_process, train, ways
from kava.bench.live import LiveTensors
from kava.bench.longest import longest_rows
from kava.bench.random_models import with_random_weights
from kava.bench.train import choose_arm
from kava.cli import main
from kava.config.arms import Arm
from kava.config.job import Job, Runtime
from kava.config.load import REPOSITORY, load_config
from kava.config.schema import Config
from kava.errors import UserError
from kava.files import write_json
from kava.models import load as models

CONFIG = REPOSITORY / "config.yaml"
TINY = ("data.train=40", "data.validation=4", "distill.batch_size=2", "distill.accumulation=2", "pretrain.batch_size=2",
        "evaluation.batch_size=4", "evaluation.max_new_tokens=8", "device=cpu")  # fmt: skip
# The teacher's KV is fp32, and the store keeps 8 of its 24 bits of precision.
BF16_STORE = ("teacher.quantization=none", "kv.codec={kind: bf16}")


def options(*settings: str) -> list[str]:
    return ["--configfile", str(CONFIG), *(word for setting in settings for word in ("--set", setting))]


def demo(**overrides: Any) -> Config:
    return load_config(CONFIG, overrides)


class Benched(NamedTuple):
    figures: dict[str, Any]
    guarded: dict[str, bool]
    left: list[Path]


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """One benchmark of a few steps, run where no file of the project lies."""
    folder, output = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out") / "train.json"
    guarded: dict[str, bool] = {}
    run_phase = ways.run_phase

    def watched(job: Any, *arguments: Any) -> Any:
        guarded[job.output.parent.name] = models._guarded
        return run_phase(job, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(ways, "run_phase", watched)
        command = ["bench", "train", "--steps", "4", "--rounds", "1", "--arm", "structured", "--folder", str(folder)]
        assert main([*command, "--output", str(output), *options(*TINY, *BF16_STORE)]) == 0
    return Benched(json.loads(output.read_text()), guarded, list(folder.iterdir()))


def test_every_way_gives_the_same_losses(benched: Benched) -> None:
    for way in ("online", "online_ahead"):
        losses = benched.figures["distill"][way]["losses"]
        assert losses.keys() == {"loss", "ce", "kv"}
        assert losses["ce"]["difference_first_step"] == 0  # it does not depend on KV until a step is made
        assert losses["kv"]["difference_first_step"] < 1e-4
        assert losses["loss"]["difference_largest"] < 1e-3


def test_figures_of_every_way_and_of_extraction_are_there(benched: Benched) -> None:
    figures = benched.figures
    shared = {"step_seconds", "tokens_per_second", "data_wait_share", "teacher_seconds", "peak_memory_mib"}
    shared |= {"out_of_memory"}
    assert figures["distill"]["store"].keys() == shared
    assert figures["distill"]["store"]["teacher_seconds"] is None
    for way in ("online", "online_ahead"):
        found = figures["distill"][way]
        assert found.keys() == shared | {"ratio", "ratios", "losses"}
        assert found["ratio"] == pytest.approx(found["step_seconds"] / figures["distill"]["store"]["step_seconds"])
        assert found["teacher_seconds"] > 0
    # In the step, the teacher's time is a part of the step's.
    assert figures["distill"]["online"]["teacher_seconds"] < 4 * figures["distill"]["online"]["step_seconds"]
    extraction = figures["extraction"]
    assert extraction["ratio"] == pytest.approx(
        extraction["extract_tokens_per_second"] / extraction["forward_tokens_per_second"]
    )
    assert (figures["steps"], figures["warm_up_steps"], figures["examples_per_step"]) == (4, 3, 4)
    assert figures["setup"]["codec"] == {"kind": "bf16"}


def test_the_one_model_guard_is_lifted_for_the_online_ways_alone(benched: Benched) -> None:
    assert benched.guarded == {"store-0": True, "online-0": False, "online_ahead-0": False}
    assert models._guarded
    gc.collect()
    assert not list(models._resident)


def test_nothing_is_left_in_the_folder_nor_in_results(benched: Benched) -> None:
    assert benched.left == []


def test_the_table_fits_a_terminal_and_names_every_way(benched: Benched) -> None:
    text = train.table(benched.figures)
    assert all(title in text for title in train.TITLES.values())
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--arm", "flatt"], (), "no such arm; arms are: flat, structured, sft"),
        (["--arm", "sft"], (), "compares no KV"),
        (["--steps", "3"], (), "at least 4 are needed"),
        (["--rounds", "0"], (), "at least one"),
        (["--arm", "flat"], ("arms.flat.teacher_kv=shuffled",), "another example's KV"),
        (["--arm", "flat"], ("arms.flat.select={kind: uniform, budget: 8}",), "compares some tokens only"),
        (["--arm", "flat"], ("kv.signals.hidden_states=true", "arms.flat.auxiliary={codi: {}}"), "codi"),
        ([], ("arms={flat: null, structured: null}",), "sft compares no KV"),
        (["--random-weights"], (), "needs --tokenizer"),
        (["--tokenizer", "x"], (), "is for --random-weights"),
        (["--folder", "/nowhere/at/all"], (), "no such directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    arguments: list[str], settings: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "train", *arguments, *options(*settings)]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_failure_leaves_nothing_behind_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr("kava.data.tokenize.run", fail)
    for command in ("train", "memory"):
        assert main(["bench", command, "--folder", str(tmp_path), *options(*TINY)]) == 1
        assert list(tmp_path.iterdir()) == []


def test_an_arm_is_benched_without_its_schedules_and_otherwise_as_it_is() -> None:
    arm = Arm.model_validate(
        {"aligner": {"kind": "flat"}, "kv_until": 0.2, "kv_warmup_ratio": 0.1, "kv_weight": 2.0,
         "auxiliary": {"cka": {"weight": 0.5, "until": 0.3}}}
    )  # fmt: skip
    full = arm.at_full_weight()
    assert (full.kv_until, full.kv_warmup_ratio, full.kv_weight) == (1.0, 0.0, 2.0)
    assert full.auxiliary.cka
    assert (full.auxiliary.cka.until, full.auxiliary.cka.weight) == (1.0, 0.5)
    assert arm.kv_until == 0.2


def test_without_a_name_the_first_arm_that_compares_kv_is_chosen() -> None:
    assert choose_arm(demo(arms={"flat": {"teacher_kv": "shuffled"}}), None) == "structured"


def test_live_tensors_count_a_storage_once_and_until_it_is_dropped() -> None:
    weight = torch.zeros(256, 1024)  # 1 MiB, made before
    with LiveTensors() as live:
        view = weight.view(-1)[::2]
        assert live.bytes == 1 << 20
        double = weight + weight
        assert live.bytes == 2 << 20
        del double, view
        assert live.bytes == 1 << 20
        weight.mul_(2)
    assert (live.bytes, live.peak) == (1 << 20, 2 << 20)


def test_the_peak_of_a_backward_holds_weight_gradient_and_what_was_saved() -> None:
    x, w = torch.randn(256, 1024), torch.randn(1024, 1024, requires_grad=True)
    with LiveTensors() as live:
        (x @ w).square().sum().backward()
    # x 1, w 4, the gradient of the product 1, and that of w 4 MiB; the product is gone by then.
    assert 10 <= live.peak / 2**20 < 10.01


def test_a_tensor_of_another_thread_counts_from_its_first_use() -> None:
    made: list[torch.Tensor] = []
    with LiveTensors() as live:
        thread = threading.Thread(target=lambda: made.append(torch.ones(1024, 256)))
        thread.start()
        thread.join()
        assert live.bytes == 0
        made[0].sum()
        assert live.bytes >= 1 << 20


def test_the_longest_examples_and_questions_are_measured() -> None:
    config = demo(max_length=100)
    rows, longest = longest_rows(config, 5, 2, 3)
    assert [len(rows[split]) for split in ("train", "validation", "test")] == [5, 2, 3]
    assert longest <= 100
    more, _ = longest_rows(config, 20, 2, 3)
    assert more["train"][:5] == rows["train"]
    shortest = min(longest_rows(config, 1000, 100, 500)[0]["test"], key=lambda row: len(row["question"]))
    assert len(rows["test"][0]["question"]) > len(shortest["question"])


def geometry_only(folder: Path, **changes: Any) -> str:
    """A model directory without weights and tokenizer."""
    tiny_model("qwen2", **{"vocab_size": 600, "max_position_embeddings": 256} | changes).config.save_pretrained(folder)
    return str(folder)


def test_random_weights_need_a_geometry_and_a_tokenizer_alone(tmp_path: Path) -> None:
    tokenizer = REPOSITORY / "kava" / "demo" / "teacher"
    teacher, student = geometry_only(tmp_path / "t"), geometry_only(tmp_path / "s", num_hidden_layers=2)
    config = demo(teacher={"model": teacher}, student={"model": student})
    made = with_random_weights(config, tokenizer, tmp_path / "made")
    assert made.teacher.quantization == config.teacher.quantization
    loaded = models.load_student(made.student, torch.device("cpu"))
    assert loaded.config.num_hidden_layers == 2
    assert len(models.load_tokenizer(made.teacher)) <= 600
    small = config.model_copy(update={"teacher": config.teacher.model_copy(
        update={"model": geometry_only(tmp_path / "small", vocab_size=20)})})  # fmt: skip
    with pytest.raises(UserError, match="embeddings for 20"):
        with_random_weights(small, tokenizer, tmp_path / "other")
    unknown = config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": "some/body"})})
    with pytest.raises(UserError, match="the geometry of some/body is not known"):
        with_random_weights(unknown, tokenizer, tmp_path / "third")


@pytest.mark.slow
def test_memory_of_every_stage_is_measured_with_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    teacher, student = geometry_only(tmp_path / "t"), geometry_only(tmp_path / "s", num_hidden_layers=2)
    settings = (*TINY, f"teacher.model={teacher}", f"student.model={student}", "arms={structured: null}")
    made = ["--random-weights", "--tokenizer", str(REPOSITORY / "kava" / "demo" / "teacher"), "--folder", str(work)]
    assert main(["bench", "memory", "--json", *made, *options(*settings)]) == 0
    figures = json.loads(capsys.readouterr().out)
    found = {(row["stage"], row["arm"]): row for row in figures["stages"]}
    assert list(found) == [
        ("extract", ""), ("pretrain", "flat"), ("distill", "flat"), ("distill", "sft"), ("evaluate teacher", ""),
        ("evaluate student", ""),
    ]  # fmt: skip
    for row in figures["stages"]:
        assert row["error"] is None, row
        assert row["tensors_mib"] > 0
    parameters = sum(p.numel() for p in tiny_model("qwen2", vocab_size=600, num_hidden_layers=2).parameters())
    # Weights, gradients and both moments of AdamW in fp32; and the projector with its batch.
    assert found["distill", "sft"]["tensors_mib"] > 16 * parameters / 2**20
    assert found["distill", "flat"]["tensors_mib"] > found["distill", "sft"]["tensors_mib"]
    assert figures["longest_example_tokens"] > 60
    assert list(work.iterdir()) == []
    assert "distill" in memory.table(figures)


def test_a_stage_that_fails_is_told_and_so_is_what_needs_it(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    def measured(job: Job, _runtime: Runtime, _folder: Path) -> dict[str, Any]:
        if job.stage == "distill":
            return {"tensors_mib": 1.0, "error": "memory ran out"}
        write_json(job.output, {})
        return {"tensors_mib": 1.0, "error": None}

    monkeypatch.setattr(stage_process, "run_measured", measured)
    assert main(["bench", "memory", "--json", *options(*TINY, "arms={flat: null, structured: null}")]) == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert rows["distill"]["error"] == "memory ran out"
    assert "its stage failed" in rows["evaluate student"]["error"]
