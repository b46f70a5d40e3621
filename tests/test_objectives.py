"""The step of every arm: what each objective pulls on, when it applies, and what a collapsed projector looks like."""

import logging
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_batches import arm, stores, teacher, token_set  # noqa: F401

from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.kv import Geometry
from kava.losses.schedule import weight_at
from kava.models.capture import capture, geometry, rotate, unrotate
from kava.store.reader import StoreReader
from kava.training.batches import Batches, stored_batches
from kava.training.calibrate import calibrate
from kava.training.model import DistillationModel
from kava.training.phase import judge, measure_alignment
from kava.training.watch import first_warnings, late_step, warnings_at

AUXILIARIES = {"codi": {}, "logit_kd": {}, "cka": {}, "hidden": {"layers": [0, 2]}}
ARMS = {
    "flat": arm({"kind": "flat"}),
    "linear, mse": arm({"kind": "linear"}, loss={"kind": "mse"}),
    "flat_matched, smooth_l1": arm({"kind": "flat_matched"}, loss={"kind": "smooth_l1", "layer_std": True}),
    "structured by cka": arm({"kind": "structured", "layer_map": {"kind": "cka"}}),
    "hybrid, scheduled": arm(loss={"kind": "hybrid", "schedule": "linear"}),
    "structural": arm(loss={"kind": "structural"}),
    "standardised tokens": arm(loss={"kind": "mse", "standardize": True, "granularity": "token"}),
    "by importance": arm(loss={"kind": "mercator", "weights": "importance"}),
    "values of the reasoning": arm(tensors="values", segments=["reasoning"]),
    "selected": arm(select={"kind": "random", "budget": 8}),
    "everything": arm(auxiliary=AUXILIARIES),
    "auxiliaries alone": arm(None, auxiliary=AUXILIARIES),
}


def prepare(
    manifest: Any, settings: Arm, train_student: bool = True, **changes: Any
) -> tuple[DistillationModel, Batches]:
    """Model and batches of an arm over a store, calibrated as a phase does it."""
    store = StoreReader(manifest, select=settings.select)
    student = tiny_model("qwen2", max_position_embeddings=128, hidden_size=48, num_hidden_layers=2, **changes)
    torch.manual_seed(0)
    projector = None
    if settings.aligner:
        aligner, center = settings.aligner, settings.loss.center
        projector = Projector(aligner, store.geometry, geometry(student.config), center)
        projector.set_teacher_statistics(store.mean, store.std)
    width = store.contents.hidden_width
    model = DistillationModel(student, projector, settings, train_student, "pre_rope", width)
    plain = stored_batches(token_set(), "train", store)
    if projector:
        model.eval()
        calibrate(projector, student, lambda: plain.slice(range(6), 3), "pre_rope", base_student=True)
    return model, stored_batches(token_set(), "train", store, settings)


def without_cross_entropy(model: DistillationModel, monkeypatch: Any) -> None:
    """Leave the KV loss and the auxiliaries as all that pulls."""
    monkeypatch.setattr(model, "_cross_entropy", lambda *_: torch.zeros(()))


@pytest.mark.parametrize("name", ARMS)
def test_every_objective_reaches_the_students_values(name: str, stores: Any, monkeypatch: Any) -> None:  # noqa: F811
    settings = ARMS[name]
    model, batches = prepare(stores["full"], settings)
    without_cross_entropy(model, monkeypatch)
    output = model(**batches.collate([0, 1, 2]))
    used = {name for name, given in settings.auxiliary if given}
    wanted = {"loss", "ce"} | used
    if settings.aligner:
        wanted |= {"kv", "cos_sim", "cos_sim_centered", "magnitude"}
    if settings.loss.kind == "structural":
        wanted.add("attention")
    assert set(output) == wanted
    assert all(torch.isfinite(value) for value in output.values())
    output["loss"].backward()
    for layer in model.student.model.layers:
        assert layer.self_attn.v_proj.weight.grad.abs().sum() > 0
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    assert bool(list(model.auxiliary.parameters())) == bool({"codi", "hidden"} & used)  # projections
    assert all(p.grad.abs().sum() > 0 for p in model.auxiliary.parameters())


@pytest.mark.parametrize("name", ARMS)
def test_the_loss_is_the_weighed_sum_of_its_parts(name: str, stores: Any) -> None:  # noqa: F811
    settings = ARMS[name].model_copy(update={"kv_weight": 0.3})
    model, batches = prepare(stores["full"], settings)
    output = model.eval()(**batches.collate([0, 1, 2]))
    expected = output["ce"] + sum(output[part] for part in AUXILIARIES if part in output)
    if "kv" in output:
        expected = expected + 0.3 * (output["kv"] + output.get("attention", 0.0))
    torch.testing.assert_close(output["loss"], expected)


def test_only_the_projector_is_pretrained_and_only_by_kv(stores: Any) -> None:  # noqa: F811
    model, batches = prepare(stores["full"], ARMS["everything"], train_student=False)
    output = model.train()(**batches.collate([0, 1]))
    assert set(output) == {"loss", "kv", "cos_sim", "cos_sim_centered", "magnitude"}
    output["loss"].backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert not model.student.training  # dropout would only blur its targets
    assert all(p.grad is not None for p in model.projector.parameters())


def test_a_projector_that_is_not_trained_gets_no_gradient_and_no_dropout(stores: Any) -> None:  # noqa: F811
    model, batches = prepare(stores["full"], arm({"kind": "flat"}, train_projector=False))
    model.train()(**batches.collate([0, 1]))["loss"].backward()
    assert all(p.grad is None for p in model.projector.parameters())
    assert not model.projector.training
    assert model.student.training


def test_keys_alone_leave_values_of_the_last_layer_without_a_gradient(stores: Any, monkeypatch: Any) -> None:  # noqa: F811
    model, batches = prepare(stores["full"], arm(tensors="keys"))
    without_cross_entropy(model, monkeypatch)
    model(**batches.collate([0, 1]))["loss"].backward()
    attention = model.student.model.layers[-1].self_attn
    assert attention.v_proj.weight.grad is None
    assert attention.k_proj.weight.grad.abs().max() > 1e-4


def test_a_loss_whose_time_is_over_is_not_computed(stores: Any) -> None:  # noqa: F811
    settings = arm(kv_until=0.3, auxiliary={"cka": {"until": 0.5}})
    model, batches = prepare(stores["full"], settings)
    batch = batches.collate([0, 1])
    for progress, parts in ((0.0, {"kv", "cka"}), (0.4, {"cka"}), (0.6, set())):
        model.progress = progress
        assert set(model(**batch)) & {"kv", "cka"} == parts


@pytest.mark.parametrize("kind", ["flat", "linear", "flat_matched", "structured"])
def test_a_drawn_projector_has_the_base_students_means_and_spread(kind: str, stores: Any) -> None:  # noqa: F811
    model, batches = prepare(stores["full"], arm({"kind": kind}))
    model.eval()
    pair = model.predict(batches.collate(list(range(6))))
    for student, projected in zip(pair.student, pair.projected, strict=True):
        real = pair.mask.bool()[:, None, None, :, None].expand_as(student)
        for side in (student, projected):
            side[~real] = float("nan")
        s, p = (x.transpose(1, 3).flatten(0, 1) for x in (student, projected))  # [B·T, H, L, D]
        torch.testing.assert_close(s.nanmean(0), p.nanmean(0), atol=1e-4, rtol=0)
        spread = [(x - x.nanmean(0)).square().nanmean(0).mean(-1).sqrt() for x in (s, p)]
        torch.testing.assert_close(spread[0], spread[1], atol=1e-4, rtol=1e-3)


def test_the_schedule_of_hybrid_ends_with_the_kv_loss(stores: Any) -> None:  # noqa: F811
    model, batches = prepare(stores["full"], arm(loss={"kind": "hybrid", "schedule": "linear"}, kv_until=0.5))
    batch = batches.collate([0, 1])
    alone = {kind: prepare(stores["full"], arm(loss={"kind": kind}))[0].eval() for kind in ("mse", "mercator")}
    model.eval()
    for progress, kind in ((0.0, "mse"), (0.4999999, "mercator")):
        model.progress = progress
        torch.testing.assert_close(model(**batch)["kv"], alone[kind](**batch)["kv"], rtol=1e-4, atol=1e-5)


def test_weights_rise_stay_fall_and_end() -> None:
    at = [weight_at(2.0, progress / 10, 0.2, 0.2, until=0.8) for progress in range(11)]
    assert at == pytest.approx([0, 1, 2, 2, 2, 2, 2, 1, 0, 0, 0])


def test_cka_map_of_base_student_and_teacher_stands_in_the_projector(stores: Any) -> None:  # noqa: F811
    model, _ = prepare(stores["full"], ARMS["structured by cka"])
    cka = model.projector.cka
    assert cka.shape == (2, 2, 3)
    assert ((cka > 0) & (cka < 1)).all()
    weights = model.projector.aligners[0].layer_weights
    chosen = cka[0].topk(2, dim=-1).indices
    assert (weights.gather(-1, chosen) > 0).all()


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_rotation_is_undone_by_its_inverse_and_equals_the_models_own(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(3, 61, (2, 9))
    rotated = capture(model, ids, torch.ones_like(ids), keys="post_rope")[0].keys
    plain = unrotate(model, rotated)
    torch.testing.assert_close(rotate(model, plain), rotated, atol=1e-5, rtol=1e-5)


def constant_projector(stores: Any) -> tuple[DistillationModel, Batches]:  # noqa: F811
    """A student whose KV sits far from zero, and a projector that says the same of every token."""
    model, batches = prepare(stores["full"], arm({"kind": "linear"}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.student.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.bias.copy_(5 * torch.randn(projection.bias.shape, generator=generator))
        for parameter in model.projector.parameters():
            parameter.zero_()
    calibrate(model.projector, model.student, lambda: batches.slice(range(6), 3), "pre_rope", base_student=True)
    return model, batches


def test_a_planted_collapse_is_called_out_although_its_raw_cosine_is_high(stores: Any, caplog: Any) -> None:  # noqa: F811
    model, batches = constant_projector(stores)
    alignment = measure_alignment(model, batches, batches, 3)
    assert alignment is not None
    assert alignment["cos_sim"] > 0.95
    assert alignment["r2"] < 0.05
    with caplog.at_level(logging.INFO, logger="kava"):
        warnings = judge(alignment, None)
    assert any(sentence.startswith("collapse") for sentence in warnings)
    assert any("warning: collapse" in record.getMessage() for record in caplog.records)


def test_running_warnings_name_magnitude_and_slow_alignment_once() -> None:
    lines = [{"step": step, "magnitude": 4.0, "cos_sim_centered": 0.3} for step in range(50, 500, 50)]
    assert [len(warnings_at(line, 200)) for line in lines] == [1, 1, 1, 2, 1, 1, 1, 1, 1]
    first = first_warnings(lines, 200)
    assert [sentence.split(":")[0] for sentence in first] == ["magnitude", "slow alignment"]
    assert "factor of 7.4" in first[0]  # e²
    assert "step 50," in first[0]
    assert warnings_at({"step": 200, "magnitude": None, "cos_sim_centered": None}, 200) == []


@pytest.mark.parametrize(
    ("compared", "steps", "log_every", "expected"),
    [
        (150, 500, 25, 150),
        (500, 500, 50, 200),
        (500, 500, 75, 225),
        (30, 500, 25, 50),
        (150, 150, 20, 140),
        (0, 9, 1, 0),
    ],
)
def test_slow_alignment_is_judged_at_a_step_that_the_run_logs(
    compared: int, steps: int, log_every: int, expected: int
) -> None:
    assert late_step(compared, steps, log_every) == expected


def test_geometry_of_the_fixture_is_unlike_on_every_side() -> None:
    """So that a mix-up of teacher and student cannot go unseen here."""
    student = tiny_model("qwen2", hidden_size=48, num_hidden_layers=2)
    assert geometry(student.config) == Geometry(2, 2, 8)
