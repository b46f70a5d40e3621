"""Projectors that are solved for: against NumPy's least squares, against SciPy's search, and in the phase's place."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from training_fixtures import FakeStore, batches, make_model, measure

from kava.align import ALIGNERS, make_aligner
from kava.align.base import Solved
from kava.align.least_squares import Moments, alternating, ridge_regression
from kava.config import Config
from kava.config.arms import SOLVED, FlatAligner, FlatMatchedAligner, LinearAligner, StructuredAligner
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY, load_config, merge, parse_assignments
from kava.config.specs import NoPretraining, PretrainSpec
from kava.config.training import ClosedForm, Pretrain
from kava.errors import UserError
from kava.kv import Geometry, KeysValues, tokens_first
from kava.metrics import Pair, alignment_metrics
from kava.models.capture import capture
from kava.training.batches import stored_batches, teacher_kv
from kava.training.closed_form import solve
from kava.training.journal import MetricsFile, TrainingRun
from kava.training.loop import train

CLOSED = ClosedForm(batch_size=4)
CPU = torch.device("cpu")
KINDS = [
    LinearAligner(), StructuredAligner(), StructuredAligner(per_head=True, per_layer=False), FlatAligner(),
    FlatAligner(aggregation="weighted"), FlatMatchedAligner(),
]  # fmt: skip


def load(*assignments: str) -> Config:
    return load_config(REPOSITORY / "config.yaml", parse_assignments(list(assignments)))


def moments_of(x: torch.Tensor, y: torch.Tensor, size: int = 7) -> Moments:
    """Of `[G, N, C]` and `[G, N, K]`, a few tokens at a time."""
    moments = Moments()
    for start in range(0, x.shape[1], size):
        moments.add(x[:, start : start + size].float(), y[:, start : start + size].float())
    return moments


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_ridge_regression_is_that_of_numpy_problem_by_problem(ridge: float) -> None:
    x, noise = random(2, 90, 5) * 3 + 1, random(2, 90, 3, seed=1)
    y = x @ random(2, 5, 3, seed=2) + noise + 40
    weight, bias = ridge_regression(moments_of(x, y).about_the_means(), ridge)
    for g in range(2):
        a, b = x[g].float().double().numpy(), y[g].float().double().numpy()
        centred = a - a.mean(0)
        penalty = ridge * np.mean(np.sum(centred**2, 0))
        # Rows of their own for the penalty: no normal matrix.
        rows = np.vstack([centred, np.sqrt(penalty) * np.eye(5)])
        expected = np.linalg.lstsq(rows, np.vstack([b - b.mean(0), np.zeros((5, 3))]), rcond=None)[0]
        np.testing.assert_allclose(weight[g].T, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bias[g], b.mean(0) - a.mean(0) @ expected, rtol=1e-4)


def test_features_that_are_not_finite_have_no_solution_and_it_is_said() -> None:
    x = random(1, 20, 3)
    x[0, 4, 1] = float("nan")
    with pytest.raises(UserError, match=r"no solution with pretrain\.ridge: 0\.001"):
        ridge_regression(moments_of(x, random(1, 20, 2)).about_the_means(), 1e-3)


SHARED = [(False, False), (True, False), (False, True), (True, True)]
SHAPE = (2, 3, 2, 2, 2)  # L, H_t, D_t, H_s, D_s


def structured_case() -> tuple[torch.Tensor, ...]:
    """Moments of noisy data, their start, and the data."""
    layers, theirs, wide, ours, dim = SHAPE
    x, y = random(layers, 60, theirs * wide), random(layers, 60, ours * dim, seed=1)
    y = y + x @ random(layers, theirs * wide, ours * dim, seed=2)
    xx = (x.mT @ x).unflatten(2, (theirs, wide)).unflatten(1, (theirs, wide))
    xy = (x.mT @ y).unflatten(2, (ours, dim)).unflatten(1, (theirs, wide))
    return xx, xy, torch.full((layers, ours, theirs), 1 / theirs, dtype=torch.float64), x, y


def squares(mixer: Any, projection: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum of squares over all tokens, from the map itself."""
    layers, theirs, wide, ours, dim = SHAPE
    heads = x.unflatten(2, (theirs, wide)).numpy()
    given = np.einsum("lsh,lnhd,lskd->lnsk", mixer, heads, np.broadcast_to(projection, (layers, ours, dim, wide)))
    return float(((given - y.unflatten(2, (ours, dim)).numpy()) ** 2).sum())


@pytest.mark.parametrize("shared", SHARED, ids=str)
def test_alternating_least_squares_never_rises_and_ends_where_a_search_does(shared: tuple[bool, bool]) -> None:
    xx, xy, start, x, y = structured_case()
    mixer, projection, losses = alternating(xx, xy, start, shared)
    assert all(later <= former + 1e-9 * abs(former) for former, later in pairwise(losses))
    found = squares(mixer.numpy(), projection.numpy(), x, y)
    assert found == pytest.approx(losses[-1] + float(y.square().sum()))
    layers, _, wide, ours, dim = SHAPE
    assert projection.shape == (1 if shared[0] else layers, 1 if shared[1] else ours, dim, wide)

    def loss(flat: np.ndarray) -> float:
        return squares(
            flat[: start.numel()].reshape(start.shape), flat[start.numel() :].reshape(projection.shape), x, y
        )

    # From the same mixers.
    best = minimize(loss, np.concatenate([start.numpy().ravel(), np.zeros(projection.numel())]), method="BFGS").fun
    assert found == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("settings", [StructuredAligner(), StructuredAligner(per_head=True)], ids=str)
def test_what_a_structured_map_made_is_found_again(settings: StructuredAligner) -> None:
    teacher, student = Geometry(3, 2, 6), Geometry(2, 2, 4)
    torch.manual_seed(0)
    maker, fitted = (make_aligner(settings, teacher, student) for _ in range(2))
    assert isinstance(fitted, Solved)
    with torch.no_grad():
        maker.mixer += 0.3 * torch.randn_like(maker.mixer)
        maker.bias += torch.randn_like(maker.bias)
        given = torch.randn(4, 3, 2, 50, 6)
        made, moments = maker(given), Moments()
        for rows in (slice(0, 1), slice(1, 4)):
            x, y = fitted.features(given[rows]), fitted.targets(made[rows])
            moments.add(x.flatten(1, 2), y.flatten(1, 2))
        fitted.solve(moments.about_the_means(), ClosedForm(ridge=1e-7))
        torch.testing.assert_close(fitted(given), made, atol=5e-3, rtol=0)


def test_orthogonal_projections_are_rotations_and_find_a_scaled_one_again() -> None:
    geometry = Geometry(2, 2, 5)
    torch.manual_seed(0)
    fitted = make_aligner(StructuredAligner(), geometry, geometry)
    assert isinstance(fitted, Solved)
    rotation = torch.linalg.qr(torch.randn(2, 1, 5, 5))[0]
    given = torch.randn(3, 2, 2, 40, 5)
    scales = torch.tensor([0.5, 3.0])[:, None, None]
    made = scales * (given @ rotation.mT)
    with torch.no_grad():
        moments = Moments()
        moments.add(fitted.features(given).flatten(1, 2), fitted.targets(made).flatten(1, 2))
        fitted.solve(moments.about_the_means(), ClosedForm(ridge=1e-7, orthogonal=True))
        torch.testing.assert_close(fitted(given), made, atol=1e-4, rtol=0)
    identity = torch.eye(5).expand(2, 1, 5, 5)
    torch.testing.assert_close(fitted.projection @ fitted.projection.mT, identity, atol=1e-5, rtol=0)
    other = make_aligner(StructuredAligner(), Geometry(2, 2, 6), geometry)
    assert isinstance(other, Solved)
    moments.add(torch.randn(2, 20, 10), torch.randn(2, 20, 10))
    with pytest.raises(UserError, match=r"the teacher's is 6, the student's 5"):
        other.solve(moments.about_the_means(), ClosedForm(orthogonal=True))


def run_in(folder: Path) -> TrainingRun:
    return TrainingRun(folder, "fingerprint", "arm", 7, CPU)


def solved(folder: Path, aligner: Any, settings: ClosedForm = CLOSED, **arm: Any) -> tuple[Any, dict[str, Any]]:
    model = make_model(aligner, False, **arm)
    measure(model, 4)
    stored = batches().teacher.by_name["kv"].stored
    data = stored_batches(stored.tokens, "train", stored.store, model.arm)
    return model, solve(model, data, settings, run_in(folder))


def both_sides(model: Any) -> list[list[torch.Tensor]]:
    """Keys and values of all tokens, `[N, L · H · D]`: what the projector reads, gives, and should give."""
    found: list[list[torch.Tensor]] = [[], [], [], [], [], []]
    with torch.no_grad():
        for batch in batches().slice(range(40), 10):
            teacher = teacher_kv(batch, CPU)
            student, _ = capture(model.student, batch["input_ids"], batch["attention_mask"], "pre_rope")
            sides = [*model.projector.inputs(teacher), *model.projector(teacher), *student]
            for rows, tensor in zip(found, sides, strict=True):
                rows.append(tokens_first(tensor)[batch["kv_mask"] > 0].flatten(1).double())
    whole = [torch.cat(rows) for rows in found]
    return [whole[0:2], whole[2:4], whole[4:6]]


@pytest.mark.parametrize("center", [True, False])
def test_a_linear_projector_predicts_the_students_kv_as_numpys_least_squares_do(center: bool, tmp_path: Path) -> None:
    loss = {"kind": "mse", "center": center}
    model, facts = solved(tmp_path, LinearAligner(), ClosedForm(ridge=1e-6, batch_size=4), loss=loss)
    for x, given, y in zip(*both_sides(model), strict=True):
        a = np.hstack([x.numpy(), np.ones((len(x), 1))])
        expected = a @ np.linalg.lstsq(a, y.numpy(), rcond=None)[0]
        np.testing.assert_allclose(given, expected, atol=2e-3)
    tokens = sum(len(ids) for ids in batches().ids)
    assert (facts["optimizer_steps"], facts["train_tokens"], len(x)) == (0, tokens, tokens)


@pytest.mark.parametrize(("aligner", "center"), [*((kind, True) for kind in KINDS), (KINDS[1], False)], ids=str)
def test_a_solved_projector_errs_less_than_a_trained_one(aligner: Any, center: bool, tmp_path: Path) -> None:
    def error(model: Any) -> float:
        _, given, student = both_sides(model.eval())
        return sum(float((s - g).square().sum()) for g, s in zip(given, student, strict=True))

    loss = {"kind": "mse", "center": center}
    trained = make_model(aligner, False, loss=loss)
    measure(trained, 4)
    drawn = error(trained)
    settings = Pretrain(steps=4, batch_size=8, accumulation=1, projector_lr=1e-2, log_every=4)
    train(trained, batches(), settings, run_in(tmp_path))
    model, _ = solved(tmp_path, aligner, loss=loss)
    assert error(model) < error(trained) < drawn
    assert MetricsFile(tmp_path / "metrics.jsonl").read() == []  # what training logged is not of the solution


def test_alignment_is_no_worse_than_after_training(tmp_path: Path) -> None:
    def r2(model: Any) -> float:
        def predict(batch: Any) -> Pair:
            student, _ = capture(model.student, batch["input_ids"], batch["attention_mask"], "pre_rope")
            return Pair(student, model.projector(teacher_kv(batch, CPU)), batch["input_ids"], batch["kv_mask"])

        read = partial(batches().slice, batch_size=8)
        return float(alignment_metrics(predict, read(range(30)), read(range(40)))["r2"])

    trained = make_model(StructuredAligner(), False)
    measure(trained, 4)
    train(trained, batches(), Pretrain(steps=4, batch_size=8, accumulation=1, log_every=4), run_in(tmp_path))
    assert r2(solved(tmp_path, StructuredAligner())[0]) > r2(trained.eval())


def test_the_same_bytes_every_time_and_others_of_fewer_examples_or_segments(tmp_path: Path) -> None:
    def state(settings: ClosedForm = CLOSED, **arm: Any) -> dict[str, torch.Tensor]:
        return dict(solved(tmp_path, StructuredAligner(), settings, **arm)[0].projector.state_dict())

    first, again = state(), state()
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    few, answers = state(ClosedForm(batch_size=4, examples=9)), state(segments=["answer"])
    assert not torch.equal(first["aligners.0.projection"], few["aligners.0.projection"])
    assert not torch.equal(first["aligners.0.projection"], answers["aligners.0.projection"])
    store = FakeStore(batches().ids)
    teacher = KeysValues(*(tensor.permute(1, 2, 0, 3)[None] for tensor in store.read("train", 3).kv))
    model, _ = solved(tmp_path, StructuredAligner())
    torch.testing.assert_close(
        model.projector(teacher).keys, model.projector.raw(teacher)[0] + model.projector.student_mean[0]
    )


def test_the_aligners_that_are_solved_for_are_those_that_can_be() -> None:
    assert {aligner.kind for aligner in ALIGNERS if issubclass(aligner, Solved)} == set(SOLVED)
    assert {settings.kind for settings in KINDS} == set(SOLVED)


def test_settings_that_cannot_be_solved_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, fitted = "pretrain={kind: closed_form}", "arms={flat: {pretrain_projector: true}}"
    assert load(closed, fitted).pretrain == ClosedForm()
    with pytest.raises(UserError, match=r"orthogonal is about .* structured, and arms\.flat has the aligner flat"):
        load("pretrain={kind: closed_form, orthogonal: true}", fitted)
    load("pretrain={kind: closed_form, orthogonal: true}")  # of no arm that is pretrained
    for ridge in (0, -1, 1.5):
        with pytest.raises(UserError, match=r"pretrain\.closed_form\.ridge"):
            load(f"pretrain={{kind: closed_form, ridge: {ridge}}}")
    with pytest.raises(UserError, match="steps"):
        load("pretrain={kind: closed_form, steps: 3}")
    monkeypatch.setattr("kava.config.training.SOLVED", ("linear",))
    with pytest.raises(UserError, match=r"solves for aligners of kind linear, and arms\.flat has flat"):
        load(closed, fitted)


def test_a_kind_that_is_left_out_is_gradient_and_stands_in_no_params() -> None:
    fitted = "arms={flat: {pretrain_projector: true}}"
    plain, named = load(fitted), load(fitted, "pretrain.kind=gradient")
    assert named.pretrain == plain.pretrain
    assert isinstance(named.pretrain, Pretrain)
    assert named.pretrain.batch_size == 32  # the preset's
    assert "kind" not in plain.model_dump()["pretrain"]
    assert Jobs(plain).pretrain("flat", 42).spec.model_dump()["pretrain"].keys() == Pretrain.model_fields.keys() - {
        "kind", "save_every", "keep_checkpoints",
    }  # fmt: skip
    closed = Jobs(load(fitted, "pretrain={kind: closed_form, batch_size: 32}"))
    assert closed.pretrain("structured", 42).params == Jobs(plain).pretrain("structured", 42).params
    for job in (closed.pretrain("flat", 42), closed.pretrain("structured", 42), Jobs(plain).pretrain("flat", 42)):
        spec = PretrainSpec.model_validate(job.spec.model_dump())
        assert type(spec.pretrain) in (ClosedForm, NoPretraining, Pretrain)
        assert spec.model_dump() == job.spec.model_dump()
    assert merge({"pretrain": {"steps": 9}}, {"pretrain": {"kind": "closed_form"}}) == {
        "pretrain": {"kind": "closed_form"}
    }
