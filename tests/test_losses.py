"""KV losses: known values, a plain float64 computation, tokens that do not count, gradients at zero."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from kava.config.arms import HybridLoss, Loss, MercatorLoss, MseLoss, SmoothL1Loss, StructuralLoss
from kava.losses import kv_loss
from kava.losses.masking import masked_mean

FORMULAS = {
    "mercator": MercatorLoss(alpha=0.7, beta=0.05),
    "mse": MseLoss(),
    "smooth_l1": SmoothL1Loss(threshold=0.6),
    "smooth_l1 over the layer's std": SmoothL1Loss(threshold=0.6, layer_std=True),
    "hybrid": HybridLoss(),
    "hybrid on a schedule": HybridLoss(beta=0.05, schedule="linear"),
    "structural": StructuralLoss(),
}
EVERY_LOSS = pytest.mark.parametrize(
    "settings",
    [
        pytest.param(loss.model_copy(update={"granularity": granularity}), id=f"{name} per {granularity}")
        for name, loss in FORMULAS.items()
        for granularity in ("head", "token")
    ],
)
SHAPE = (2, 3, 2, 5, 4)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
IMPORTANCE = torch.tensor([[0.3, 2.0, 0.7, 0.0, 0.0], [1.0, 0.0, 1.4, 0.1, 0.0]])
ALL = torch.ones(2, 5)


def random(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_loop(settings: Any, student: Tensor, teacher: Tensor, weight_BT: Tensor, progress: float) -> float:
    """One pair of vectors after the other, in float64."""
    s_all, t_all, weights = (x.double().numpy() for x in (student, teacher, weight_BT))
    batch, layers, heads, tokens, _ = s_all.shape
    rows: dict[str, list[float]] = {name: [] for name in ("weight", "cosine", "log_norm", "mse", "smooth_l1")}
    for layer in range(layers):
        counted = [(b, t) for b in range(batch) for t in range(tokens) if weights[b, t] > 0]
        std = 1.0
        if getattr(settings, "layer_std", False):
            flat = np.concatenate([t_all[b, layer, :, t].ravel() for b, t in counted])
            flat_weights = np.concatenate([np.full(t_all[b, layer, :, t].size, weights[b, t]) for b, t in counted])
            mean = np.average(flat, weights=flat_weights)
            std = math.sqrt(np.average((flat - mean) ** 2, weights=flat_weights))
        for b, t in counted:
            groups = [[h] for h in range(heads)] if settings.granularity == "head" else [list(range(heads))]
            for group in groups:
                x = np.concatenate([s_all[b, layer, h, t] for h in group])
                y = np.concatenate([t_all[b, layer, h, t] for h in group])
                rows["weight"].append(weights[b, t])
                rows["cosine"].append(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
                rows["log_norm"].append(math.log(np.linalg.norm(x) / np.linalg.norm(y)) ** 2)
                rows["mse"].append(np.mean((x - y) ** 2))
                error, threshold = np.abs(x - y) / std, getattr(settings, "threshold", 1.0)
                below = error**2 / (2 * threshold)
                rows["smooth_l1"].append(np.mean(np.where(error < threshold, below, error - threshold / 2)))
    mean_of = {name: float(np.average(values, weights=rows["weight"])) for name, values in rows.items()}
    direction = 1 - mean_of["cosine"]
    mercator = getattr(settings, "alpha", 1.0) * direction + getattr(settings, "beta", 0.0) * mean_of["log_norm"]
    if settings.kind == "hybrid":
        scheduled = settings.schedule == "linear"
        of_mercator, of_mse = (progress, 1 - progress) if scheduled else (settings.mercator, settings.mse)
        return of_mercator * mercator + of_mse * mean_of["mse"]
    return (mean_of | {"mercator": mercator, "structural": direction})[settings.kind]


def test_every_loss_is_under_test() -> None:
    union, _ = get_args(Loss)
    assert {type(loss) for loss in FORMULAS.values()} == set(get_args(union))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EVERY_LOSS
def test_loss_is_zero_at_perfect_alignment(settings: Any, dtype: torch.dtype) -> None:
    x = random(0, dtype)
    assert kv_loss(settings, x, x, ALL).abs() < 1e-6


@EVERY_LOSS
def test_every_loss_agrees_with_a_plain_float64_computation(settings: Any) -> None:
    student, teacher = random(0, torch.float64), random(1, torch.float64)
    expected = by_loop(settings, student, teacher, IMPORTANCE, 0.3)
    assert expected > 0.01
    assert float(kv_loss(settings, student, teacher, IMPORTANCE, 0.3)) == pytest.approx(expected, rel=1e-9)
    in_float32 = kv_loss(settings, student.float(), teacher.float(), IMPORTANCE, 0.3)
    assert float(in_float32) == pytest.approx(expected, rel=1e-5)


@EVERY_LOSS
def test_half_precision_is_computed_in_float32_even_under_autocast(settings: Any) -> None:
    student, teacher = random(0, torch.bfloat16), random(1, torch.bfloat16)
    expected = kv_loss(settings, student.float(), teacher.float(), IMPORTANCE)
    with torch.autocast("cpu", torch.bfloat16):
        loss = kv_loss(settings, student, teacher, IMPORTANCE)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("poison", [1e30, float("inf"), float("nan")])
@EVERY_LOSS
def test_tokens_of_weight_zero_have_no_influence_on_value_or_gradient(settings: Any, poison: float) -> None:
    student, teacher = random(0).requires_grad_(), random(1).requires_grad_()
    clean = kv_loss(settings, student, teacher, MASK)
    expected = torch.autograd.grad(clean, (student, teacher))
    masked = (MASK == 0)[:, None, None, :, None].expand(SHAPE)
    poisoned = [x.detach().masked_fill(masked, poison).requires_grad_() for x in (student, teacher)]
    loss = kv_loss(settings, poisoned[0], poisoned[1], MASK)
    assert torch.equal(loss, clean)
    for gradient, clean_gradient in zip(torch.autograd.grad(loss, poisoned), expected, strict=True):
        assert torch.equal(gradient, clean_gradient)
        assert not gradient[masked].any()


@pytest.mark.parametrize("scale", [0.0, 1.0])
@EVERY_LOSS
def test_gradients_are_finite_at_zero_vectors(settings: Any, scale: float) -> None:
    student, teacher = torch.zeros(SHAPE, requires_grad=True), (scale * random(1)).requires_grad_()
    for pair in ((student, teacher), (teacher, student)):
        for gradient in torch.autograd.grad(kv_loss(settings, *pair, ALL, 0.5), (student, teacher)):
            assert torch.isfinite(gradient).all()


@EVERY_LOSS
def test_a_token_of_weight_two_counts_as_if_it_stood_there_twice(settings: Any) -> None:
    student, teacher = random(0, torch.float64), random(1, torch.float64)
    twice = [0, 1, 2, 2, 3, 4]
    weighted = kv_loss(settings, student, teacher, torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).expand(2, 5))
    repeated = kv_loss(settings, student[:, :, :, twice], teacher[:, :, :, twice], torch.ones(2, 6))
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=0)


@EVERY_LOSS
def test_only_ratios_of_weights_matter(settings: Any) -> None:
    student, teacher = random(0, torch.float64), random(1, torch.float64)
    expected = kv_loss(settings, student, teacher, IMPORTANCE)
    torch.testing.assert_close(kv_loss(settings, student, teacher, 7 * IMPORTANCE), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", FORMULAS.values(), ids=FORMULAS)
def test_granularity_token_is_one_vector_of_all_heads(loss: Any) -> None:
    student, teacher = random(0), random(1)
    joined = [torch.cat(x.unbind(2), -1)[:, :, None] for x in (student, teacher)]
    by_token = kv_loss(loss.model_copy(update={"granularity": "token"}), student, teacher, MASK)
    assert torch.equal(by_token, kv_loss(loss, joined[0], joined[1], MASK))


def test_a_mean_over_no_token_is_nan_and_not_a_perfect_score() -> None:
    assert torch.isnan(masked_mean(torch.ones(1, 1, 1, 3), torch.zeros(1, 3)))


def test_mse_agrees_with_torch() -> None:
    student, teacher = random(0), random(1)
    expected = torch.nn.functional.mse_loss(student, teacher)
    torch.testing.assert_close(kv_loss(MseLoss(), student, teacher, ALL), expected)


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0.0), (0.01, 0.01 * math.log(100) ** 2)])
def test_mercator_at_magnitudes_100_and_1_in_the_same_direction(beta: float, expected: float) -> None:
    direction = torch.nn.functional.normalize(random(0), dim=-1)
    loss = kv_loss(MercatorLoss(beta=beta), 100 * direction, direction, ALL)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert kv_loss(MseLoss(), 100 * direction, direction, ALL) > 1000


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1])
def test_beta_moves_nothing_but_the_magnitude_term(beta: float) -> None:
    student, teacher = random(0), random(1)
    direction = kv_loss(StructuralLoss(), student, teacher, ALL)
    magnitude = kv_loss(MercatorLoss(alpha=0.0, beta=1.0), student, teacher, ALL)
    loss = kv_loss(MercatorLoss(beta=beta), student, teacher, ALL)
    torch.testing.assert_close(loss, direction + beta * magnitude)


@pytest.mark.parametrize("kind", [MercatorLoss(beta=0.0), StructuralLoss()])
@pytest.mark.parametrize(("degrees", "cosine"), [(0, 1.0), (30, 0.8660254), (60, 0.5), (90, 0.0), (180, -1.0)])
def test_direction_is_the_cosine_of_the_angle(kind: Any, degrees: int, cosine: float) -> None:
    angle = math.radians(degrees)
    student = torch.tensor([1.0, 0.0]).expand(1, 1, 1, 1, 2)
    teacher = torch.tensor([math.cos(angle), math.sin(angle)]).expand(1, 1, 1, 1, 2)
    assert float(kv_loss(kind, student, teacher, torch.ones(1, 1))) == pytest.approx(1 - cosine, abs=1e-6)


@pytest.mark.parametrize(
    ("error", "threshold", "expected"), [(0.5, 1.0, 0.125), (-0.5, 1.0, 0.125), (3.0, 1.0, 2.5), (3.0, 4.0, 1.125)]
)
def test_smooth_l1_is_a_square_below_its_threshold_and_a_line_above(
    error: float, threshold: float, expected: float
) -> None:
    settings = SmoothL1Loss(threshold=threshold)
    teacher = random(0, torch.float64)
    assert float(kv_loss(settings, teacher + error, teacher, ALL)) == pytest.approx(expected, rel=1e-9)


def test_smooth_l1_over_the_std_ignores_the_scale_of_each_layer() -> None:
    settings = SmoothL1Loss(layer_std=True)
    student, teacher = random(0), random(1)
    scale = torch.tensor([0.1, 1.0, 50.0])[:, None, None, None]
    expected = kv_loss(settings, student, teacher, IMPORTANCE)
    torch.testing.assert_close(kv_loss(settings, scale * student, scale * teacher, IMPORTANCE), expected)


def test_smooth_l1_passes_no_gradient_through_the_std() -> None:
    student, teacher = random(0, torch.float64)[:, :1], random(1, torch.float64)[:, :1].requires_grad_()
    std = teacher.detach().std(correction=0)
    loss = kv_loss(SmoothL1Loss(layer_std=True), student, teacher, ALL)
    fixed = kv_loss(SmoothL1Loss(), student / std, teacher / std, ALL)
    torch.testing.assert_close(*(torch.autograd.grad(x, teacher)[0] for x in (loss, fixed)))


def test_scheduled_hybrid_starts_as_mse_and_ends_as_mercator() -> None:
    settings = HybridLoss(beta=0.05, schedule="linear")
    student, teacher = random(0), random(1)
    mse = kv_loss(MseLoss(), student, teacher, MASK)
    mercator = kv_loss(MercatorLoss(beta=0.05), student, teacher, MASK)
    at = {progress: kv_loss(settings, student, teacher, MASK, progress) for progress in (0.0, 0.25, 1.0)}
    assert torch.equal(at[0.0], mse)
    assert torch.equal(at[1.0], mercator)
    torch.testing.assert_close(at[0.25], 0.25 * mercator + 0.75 * mse)


def test_unscheduled_hybrid_ignores_progress() -> None:
    settings = HybridLoss(mercator=0.5, mse=2.0)
    student, teacher = random(0), random(1)
    mercator, mse = (kv_loss(x(), student, teacher, MASK) for x in (MercatorLoss, MseLoss))
    for progress in (0.0, 0.7):
        torch.testing.assert_close(kv_loss(settings, student, teacher, MASK, progress), 0.5 * mercator + 2 * mse)
