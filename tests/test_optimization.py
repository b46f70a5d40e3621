"""Optimization is what its settings say: rates, clipping, optimizer, precision, and what a resumed run takes over."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_steps import assert_same_curve, forgetful
from training_fixtures import make_model, run

from kava.config.arms import Arm, FlatAligner, StructuredAligner
from kava.config.specs import DistillSpec
from kava.config.training import Distill
from kava.training import loop
from kava.training.loop import Loop
from kava.training.model import DistillationModel
from kava.training.optimizer import make_optimizer, parameter_groups
from kava.training.phase import run_fingerprint

STEPS = 20


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.25])
def test_rates_rise_in_the_warm_up_and_fall_by_a_cosine(warmup_ratio: float, tmp_path: Path) -> None:
    rates = {"student_lr": 3e-4, "projector_lr": 2e-3}
    settings = {"steps": STEPS, "batch_size": 1, "accumulation": 1, "log_every": 1, "save_every": STEPS}
    run(tmp_path, make_model(), **settings, **rates, warmup_ratio=warmup_ratio)
    rising = round(warmup_ratio * STEPS)
    for line in lines(tmp_path):
        done = line["step"]  # the rate of the step after it
        share = done / rising if done < rising else (1 + math.cos(math.pi * (done - rising) / (STEPS - rising))) / 2
        for name, rate in rates.items():
            assert line[name] == pytest.approx(rate * share, rel=1e-9, abs=1e-15), (name, done)


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_gradients_of_student_and_projector_are_clipped_together_at_max_grad_norm(
    limit: float, tmp_path: Path, monkeypatch: Any
) -> None:
    # Plain descent: the length of its step is that of the gradient, which Adam would make nothing of.
    monkeypatch.setattr(loop, "make_optimizer", lambda _, groups: torch.optim.SGD(groups))
    model, lr = make_model(kv_weight=100.0), 1e-2
    one = {"steps": 1, "log_every": 1, "student_lr": lr, "projector_lr": lr, "weight_decay": 0.0, "warmup_ratio": 0.0}
    before = [p.detach().double().clone() for p in model.parameters()]
    run(tmp_path, model, **one, max_grad_norm=limit)
    moved = [(p.detach().double() - q).square().sum() for p, q in zip(model.parameters(), before, strict=True)]
    norm = float(torch.stack(moved).sum().sqrt()) / lr
    if limit < 1:
        assert norm == pytest.approx(limit, rel=1e-3)
    else:
        assert norm > 2


def test_weight_decay_and_rate_of_every_group_are_those_of_the_settings() -> None:
    settings = Distill(student_lr=3e-4, projector_lr=2e-3, weight_decay=0.3)
    model = make_model()
    named = {id(p): name for name, p in model.named_parameters()}
    found = {named[id(p)]: group for group in parameter_groups(model, settings) for p in group["params"]}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, group in found.items():
        assert group["lr"] == (3e-4 if name.startswith("student.") else 2e-3)
        assert group["weight_decay"] == (0.0 if "norm" in name or name.endswith("bias") else 0.3), name


@pytest.mark.parametrize(("kind", "dtype"), [("adamw", torch.float32), ("adamw_8bit", torch.uint8)])
def test_states_of_the_optimizer_have_the_bits_of_its_name(kind: str, dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.zeros(128, 64))
    optimizer = make_optimizer(kind, [{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}])
    weight.square().sum().backward()
    optimizer.step()
    states = {x.dtype for x in optimizer.state[weight].values() if torch.is_tensor(x) and x.shape == weight.shape}
    assert states == {dtype}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_run_in_their_precision_and_with_dropout(precision: str, tmp_path: Path, monkeypatch: Any) -> None:
    forward, seen = DistillationModel.forward, []

    def noted(model: DistillationModel, **batch: Any) -> Any:
        seen.append((torch.is_autocast_enabled("cpu"), model.student.training, model.projector.training))
        return forward(model, **batch)

    monkeypatch.setattr(DistillationModel, "forward", noted)
    run(tmp_path, make_model(FlatAligner()), steps=2, precision=precision)
    assert set(seen) == {(precision == "bfloat16", True, True)}


def test_dropout_is_drawn_by_the_seed(tmp_path: Path) -> None:
    found = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(found))  # whatever was drawn before
        model = make_model(FlatAligner())
        run(tmp_path / str(len(found)), model, steps=2, seed=seed)
        found.append(torch.cat([p.detach().flatten() for p in model.projector.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_logged_loss_is_the_mean_of_the_steps_since_the_last_line(tmp_path: Path) -> None:
    run(tmp_path / "each", make_model(), log_every=1)
    run(tmp_path / "all", make_model(), log_every=4)
    each, windows = lines(tmp_path / "each"), lines(tmp_path / "all")
    for index, window in enumerate(windows):
        for name in ("loss", "ce", "kv", "cos_sim_centered"):
            steps = [line[name] for line in each[4 * index : 4 * index + 4]]
            assert window[name] == pytest.approx(sum(steps) / 4, rel=1e-5)


def test_a_resumed_run_keeps_the_size_that_fitted_and_the_record_of_it(tmp_path: Path, monkeypatch: Any) -> None:
    """And goes on from its checkpoint, with the weights of it and what was summed there since the last line."""

    class Killed(Exception):
        pass

    def killed(this: Loop, step: int) -> Any:
        if step == 5:
            raise Killed
        return gradients(this, step)

    gradients, between_lines = Loop.gradients, {"log_every": 4, "save_every": 3}
    refused = forgetful(monkeypatch, dict.fromkeys(range(8), 2))  # no step has memory for more than two examples
    whole = run(tmp_path / "whole", make_model(StructuredAligner()), **between_lines)
    assert whole["out_of_memory"] == [{"step": 1, "batch_size": 2}]
    monkeypatch.setattr(Loop, "gradients", killed)
    with pytest.raises(Killed):
        run(tmp_path / "cut", make_model(StructuredAligner()), **between_lines)
    assert refused == [4, 4]
    monkeypatch.setattr(Loop, "gradients", gradients)
    assert run(tmp_path / "cut", make_model(StructuredAligner()), **between_lines) == whole
    assert refused == [4, 4]
    assert_same_curve(tmp_path / "whole", tmp_path / "cut", 1e-6)


def distill_spec(**changes: Any) -> DistillSpec:
    given = {"student": {"files": {"model.safetensors": "a"}}, "distill": Distill(steps=10)} | changes
    return DistillSpec(name="sft", arm=Arm(aligner=None), seed=1, code="c", export_dtype="float32", lora=None, **given)


@pytest.mark.parametrize("changed", ["store", "projector", "student", "steps"])
def test_a_checkpoint_of_another_store_projector_or_student_is_not_gone_on_with(changed: str, tmp_path: Path) -> None:
    inputs = {name: tmp_path / f"{name}.json" for name in ("tokens", "store", "projector")}
    for name, path in inputs.items():
        path.write_text(name)
    spec = distill_spec()
    before = run_fingerprint(spec, inputs)
    assert run_fingerprint(spec.model_validate(json.loads(json.dumps(spec.model_dump()))), dict(inputs)) == before
    if changed in inputs:
        inputs[changed].write_text("another")
    elif changed == "student":
        spec = distill_spec(student={"files": {"model.safetensors": "b"}})
    else:
        spec = distill_spec(distill=Distill(steps=20))
    assert run_fingerprint(spec, inputs) != before


def test_no_more_checkpoints_are_kept_than_asked_for(tmp_path: Path) -> None:
    run(tmp_path, make_model(None), save_every=2, keep_checkpoints=2)
    kept = [path.name for path in (tmp_path / "checkpoints" / "fingerprint").glob("checkpoint-*")]
    assert sorted(kept) == ["checkpoint-6", "checkpoint-8"]


def test_the_seconds_of_a_resumed_run_go_on_from_those_before(tmp_path: Path, monkeypatch: Any) -> None:
    gradients = Loop.gradients

    def killed(this: Loop, step: int) -> Any:
        if step == 5:
            raise KeyError
        return gradients(this, step)

    monkeypatch.setattr(Loop, "gradients", killed)
    with pytest.raises(KeyError):
        run(tmp_path, make_model(None))
    before = [line | {"seconds": 1000.0 + line["step"]} for line in lines(tmp_path)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
    monkeypatch.setattr(Loop, "gradients", gradients)
    run(tmp_path, make_model(None))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8]
    assert all(1004 < line["seconds"] < 1100 for line in lines(tmp_path)[2:])
