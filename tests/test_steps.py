"""An optimizer step: the same whatever its micro-batches, whether or not memory ran out, and for two processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import TIMINGS
from training_fixtures import batches, make_model, order_of_run, run, store_of

from kava.config.arms import FlatAligner, StructuredAligner
from kava.errors import Interrupted, UserError
from kava.training.loop import Loop
from kava.training.micro_batches import MicroBatches
from kava.training.model import DistillationModel
from kava.training.termination import StopOnSignal, Terminated

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def assert_same_curve(a: Path, b: Path, tolerance: float = 2e-5) -> None:
    for one, other in zip(lines(a), lines(b), strict=True):
        logged = {name for name, value in one.items() if value is not None}
        assert logged == {name for name, value in other.items() if value is not None}
        for name in logged:
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), (one["step"], name)


def forgetful(monkeypatch: Any, fails: dict[int, int]) -> list[int]:
    """Make forwards run out of memory: in step s with more than `fails[s]` examples. Returns what they then held."""
    forward, refused = DistillationModel.forward, []

    def limited(model: DistillationModel, **batch: Any) -> Any:
        rows = len(batch["input_ids"])
        for step, limit in fails.items():
            if model.progress == step / 8 and rows > limit:
                refused.append(rows)
                output = forward(model, **batch)
                output["loss"].backward()  # what the step has gathered by then is not to be used
                raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return forward(model, **batch)

    monkeypatch.setattr(DistillationModel, "forward", limited)
    return refused


@pytest.mark.parametrize("aligner", [StructuredAligner(), None])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_the_loss_curve_does_not_depend_on_the_size_of_micro_batches(
    batch_size: int, accumulation: int, aligner: Any, tmp_path: Path
) -> None:
    run(tmp_path / "a", make_model(aligner))
    run(tmp_path / "b", make_model(aligner), batch_size=batch_size, accumulation=accumulation)
    assert_same_curve(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("train_student", "fails", "expected"),
    [
        (True, {0: 2}, [{"step": 1, "batch_size": 2}]),
        (False, {3: 1}, [{"step": 4, "batch_size": 2}, {"step": 4, "batch_size": 1}]),
        (True, {1: 3, 7: 1}, [{"step": 2, "batch_size": 2}, {"step": 8, "batch_size": 1}]),
    ],
)
def test_a_step_that_runs_out_of_memory_is_done_again_from_its_first_example(
    train_student: bool, fails: dict[int, int], expected: list[dict[str, int]], tmp_path: Path, monkeypatch: Any
) -> None:
    def model() -> DistillationModel:
        return make_model(StructuredAligner(), train_student)

    facts, data = run(tmp_path / "a", model()), batches()
    refused = forgetful(monkeypatch, fails)
    assert run(tmp_path / "b", model(), data=data) == facts | {"out_of_memory": expected}
    assert len(refused) == len(expected)
    assert_same_curve(tmp_path / "a", tmp_path / "b")
    # In the end every example was read in its turn, and none of a later step was lost to what was read ahead.
    assert store_of(data).examples[-8:] == order_of_run()[-8:]


def test_memory_that_does_not_suffice_for_one_example_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    forgetful(monkeypatch, {2: 0})
    with pytest.raises(UserError, match=r"memory ran out at step 3 of arm with one example per forward.*kava plan"):
        run(tmp_path, make_model())


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(_model: DistillationModel, **_batch: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(DistillationModel, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(tmp_path, make_model())


@pytest.mark.parametrize(
    ("number", "error", "at", "train_student"),
    [
        (signal.SIGTERM, Terminated, 2, True),
        (signal.SIGTERM, Terminated, 4, False),
        (signal.SIGINT, Interrupted, 4, False),
        (signal.SIGINT, Interrupted, 6, True),
    ],
)
def test_a_signal_saves_the_step_that_is_computed_and_the_next_run_goes_on_from_it(
    number: signal.Signals, error: type[UserError], at: int, train_student: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    def model() -> DistillationModel:
        return make_model(FlatAligner(), train_student)

    whole, cut = model(), model()
    facts = run(tmp_path / "whole", whole)
    gradients = Loop.gradients

    def told(loop: Loop, step: int) -> Any:
        if step == at:
            os.kill(os.getpid(), number)
        return gradients(loop, step)

    monkeypatch.setattr(Loop, "gradients", told)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(error, match=rf"after step {at + 1} of arm, which is saved"):
        run(tmp_path / "cut", cut)
    assert handlers == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(Loop, "gradients", gradients)
    resumed, data = model(), batches()
    assert run(tmp_path / "cut", resumed, data=data) == facts
    assert store_of(data).examples == order_of_run()[8 * (at + 1) :]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_a_signal_ends_at_once(number: signal.Signals) -> None:
    with StopOnSignal() as stop:
        os.kill(os.getpid(), number)
        assert stop.asked == number
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.parametrize("arm", ["structured", pytest.param("sft", marks=pytest.mark.slow)])
def test_two_processes_give_the_loss_curve_of_one(arm: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("run_in_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "two"), arm], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run(tmp_path / "one", make_model(StructuredAligner() if arm == "structured" else None, kv_until=0.5))
    assert_same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_processes_of_a_step_read_each_of_its_examples_once(world: int) -> None:
    order, found, shares = list(range(100, 116)), {0: [], 1: []}, {0: 0.0, 1: 0.0}
    for rank in range(world):
        micro = MicroBatches(lambda part: part.examples, lambda x: {"n": float(len(x))}, order, 8, 1, rank, world)  # type: ignore[arg-type,return-value]
        for step in (0, 1):
            for examples, share in micro.of_step(step):
                found[step] += examples
                shares[step] += share["n"]
        micro.close()
    assert {step: sorted(examples) for step, examples in found.items()} == {0: order[:8], 1: order[8:]}
    assert shares == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_ends_the_run(value: float, tmp_path: Path, monkeypatch: Any) -> None:
    forward = DistillationModel.forward

    def diverged(model: DistillationModel, **batch: Any) -> Any:
        output = forward(model, **batch)
        return output | {"loss": output["loss"] + value}

    monkeypatch.setattr(DistillationModel, "forward", diverged)
    with pytest.raises(UserError, match=f"the loss of arm is {value} at step 2; lower the learning rates"):
        run(tmp_path, make_model(None))
