"""Training: gradients reach the student through its KV, both sides learn, an interruption changes nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from training_fixtures import batches, make_model, measure, order_of_run, run, store_of

from kava.config.arms import FlatAligner, StructuredAligner
from kava.config.schema import Distill
from kava.errors import UserError
from kava.training.journal import MetricsFile
from kava.training.loop import Loop
from kava.training.optimizer import make_optimizer, parameter_groups
from kava.training.termination import StopOnSignal, heeded
from kava.training.watch import alignment_word

TIMINGS = ("seconds", "data_wait")


@pytest.mark.parametrize("aligner", [FlatAligner(), StructuredAligner()])
@pytest.mark.parametrize("center", [True, False])
def test_kv_loss_alone_gives_the_student_a_gradient(aligner: Any, center: bool) -> None:
    model = make_model(aligner, loss={"kind": "mercator", "center": center})
    batch = batches().collate([0, 1, 2])
    batch["label_mask"][0, -1] = 1
    output = model(**batch)
    assert torch.isfinite(output["loss"])
    from kava.kv import KeysValues
    from kava.models.capture import capture

    captured, _ = capture(model.student, batch["input_ids"], batch["attention_mask"])
    projected = model.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
    model.objective.distance(captured, projected, batch["kv_weight"], model.projector, 0.0).backward()
    for layer in model.student.model.layers:
        for name in ("k_proj", "v_proj"):
            assert layer.self_attn.get_submodule(name).weight.grad.abs().sum() > 0
    assert model.student.model.embed_tokens.weight.grad.abs().sum() > 0


def test_padding_changes_no_part_of_the_loss() -> None:
    model = make_model().eval()
    batch = batches().collate([3, 4])
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, 5) if "teacher" in name else (0, 5))
        for name, tensor in batch.items()
    }
    padded["teacher_keys"][..., -5:, :] = 1e4
    for (name, plain), longer in zip(model(**batch).items(), model(**padded).values(), strict=True):
        torch.testing.assert_close(longer, plain, rtol=1e-5, atol=1e-6, msg=name)


def test_cross_entropy_equals_the_models_own_on_reasoning_and_answer() -> None:
    model = make_model(None).eval()
    batch = batches(store=False).collate([0, 5, 9])
    labels = batch["input_ids"].masked_fill(batch["label_mask"] == 0, -100)
    expected = model.student(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    torch.testing.assert_close(model(**batch)["loss"], expected, rtol=1e-5, atol=1e-6)


def test_pretraining_moves_the_projector_and_not_the_student(tmp_path: Path) -> None:
    model = make_model(train_student=False)
    student = {name: p.clone() for name, p in model.student.named_parameters()}
    projector = {name: p.clone() for name, p in model.projector.named_parameters()}
    run(tmp_path, model)
    assert all(torch.equal(p, student[name]) for name, p in model.student.named_parameters())
    assert all(not torch.equal(p, projector[name]) for name, p in model.projector.named_parameters())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(line["ce"] is None and line["student_lr"] is None for line in lines)


def test_centring_removes_the_means_of_both_sides() -> None:
    model = make_model().eval()
    measure(model, 8)
    from kava.kv import ChannelStatistics

    student, projected = ChannelStatistics(), ChannelStatistics()
    for batch in batches().slice(range(40), 8):
        pair = model.predict(batch)
        student.add(pair.student, pair.mask)
        projected.add(pair.projected, pair.mask)
    torch.testing.assert_close(student.mean, model.projector.student_mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.mean, model.projector.student_mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("aligner", [FlatAligner(), None])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(aligner: Any, tmp_path: Path, monkeypatch) -> None:
    whole = make_model(aligner)
    facts = run(tmp_path / "whole", whole)

    class Killed(Exception):
        pass

    def kill(loop: Loop, step: int) -> Any:
        if step == 6:
            raise Killed
        return gradients(loop, step)

    gradients = Loop.gradients
    monkeypatch.setattr(Loop, "gradients", kill)
    with pytest.raises(Killed):
        run(tmp_path / "cut", make_model(aligner))
    monkeypatch.setattr(Loop, "gradients", gradients)
    resumed, data = make_model(aligner), batches(store=aligner is not None)
    assert run(tmp_path / "cut", resumed, data=data) == facts
    if aligner is not None:  # what the checkpoint at step 4 of 8 has behind it is not read again
        assert store_of(data).examples == order_of_run()[32:]
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name

    def lines(folder: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]

    assert lines("whole") == lines("cut")


def test_a_half_written_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/fingerprint/staged.partial/checkpoint-4").mkdir(parents=True)
    (tmp_path / "checkpoints/of-other-settings/checkpoint-8").mkdir(parents=True)
    run(tmp_path, make_model(None))
    assert sorted(p.name for p in (tmp_path / "checkpoints").rglob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert not (tmp_path / "checkpoints/of-other-settings").exists()


def test_a_torn_last_line_of_the_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "seconds": 1.5}\n{"step": 4, "seconds": 3.0}\n{"step": 6, "sec')
    assert MetricsFile(path).resume_at(2) == 1.5
    assert path.read_text() == '{"step": 2, "seconds": 1.5}\n'


def test_norms_and_biases_do_not_decay() -> None:
    model = make_model()
    decay = {id(p): g["weight_decay"] for g in parameter_groups(model, Distill()) for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (decay[id(parameter)] == 0) == (name.endswith("bias") or "norm" in name), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_each_side_has_its_learning_rate(optimizer: str, tmp_path: Path) -> None:
    run(tmp_path, make_model(), optimizer=optimizer, projector_lr=2e-3, warmup_ratio=0.0)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["projector_lr"] == pytest.approx(2 * line["student_lr"])


def test_8bit_adamw_of_bitsandbytes_follows_adamw() -> None:
    torch.manual_seed(0)
    target, weights = torch.randn(128, 64), []
    for kind in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(torch.zeros(128, 64))
        optimizer = make_optimizer(kind, [{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}])
        for _ in range(150):
            optimizer.zero_grad()
            (weight - target).square().mean().backward()
            optimizer.step()
        weights.append(weight.detach())
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < 0.05


def test_exported_student_stops_at_the_end_token_that_was_trained() -> None:
    from kava.training.distill import stop_at

    student = tiny_model("qwen2")
    stop_at(student, 2)
    assert student.generation_config.eos_token_id == 2
    stop_at(student, 7)
    assert student.generation_config.eos_token_id == [2, 7]


def test_centred_cosine_is_centred_for_an_arm_whose_loss_is_not() -> None:
    both = []
    for center in (True, False):
        model = make_model(loss={"kind": "mercator", "center": center}).eval()
        measure(model, 8)
        assert model.projector.student_mean.abs().sum() > 0
        both.append(model(**batches().collate([0, 1])))
    assert both[1]["cos_sim"] != both[1]["cos_sim_centered"]
    assert both[0]["cos_sim"] != both[1]["cos_sim"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.projector.aligners[0].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss of arm is nan at step 2"):
        run(tmp_path, model)


def test_tensorboard_is_written_beside_the_student(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, make_model(None), tracker="tensorboard")
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_phase_words() -> None:
    words = [alignment_word(value) for value in (0.2, 0.5, 0.7, 0.9, 0.95)]
    assert words == ["adapting", "learning", "good", "great", "excellent"]


def test_a_process_that_was_started_to_ignore_ctrl_c_ignores_it() -> None:
    assert heeded() == [signal.SIGTERM, signal.SIGINT]
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == 0
    finally:
        signal.signal(signal.SIGINT, former)
