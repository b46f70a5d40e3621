"""Losses: known values, masks, gradients at zero."""

import math

import pytest
import torch

from kava.config.arms import MercatorLoss, MseLoss
from kava.losses import LOSSES, kv_loss

SETTINGS = [MercatorLoss().model_dump(), MseLoss().model_dump()]
SHAPE = (2, 3, 2, 5, 4)


def test_every_loss_is_under_test() -> None:
    assert {settings["kind"] for settings in SETTINGS} == set(LOSSES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_is_zero_at_perfect_alignment(settings: dict, dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE, dtype=dtype)
    assert kv_loss(settings, x, x, torch.ones(2, 5)).abs() < 1e-6


@pytest.mark.parametrize("poison", [1e6, float("nan")])
@pytest.mark.parametrize("settings", SETTINGS)
def test_masked_tokens_have_no_influence(settings: dict, poison: float) -> None:
    student, teacher = torch.randn(SHAPE), torch.randn(SHAPE)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    expected = kv_loss(settings, student, teacher, mask)
    for row, length in ((0, 3), (1, 4)):
        student[row, :, :, length:] = poison
        teacher[row, :, :, length:] = -poison
    assert torch.equal(kv_loss(settings, student, teacher, mask), expected)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_is_finite_at_zero_vectors(settings: dict) -> None:
    student = torch.zeros(SHAPE, requires_grad=True)
    kv_loss(settings, student, torch.zeros(SHAPE), torch.ones(2, 5)).backward()
    assert torch.isfinite(student.grad).all()


def test_mercator_agrees_with_a_plain_float64_computation() -> None:
    student, teacher = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    directions, magnitudes = [], []
    for b, t in mask.nonzero().tolist():
        for s, p in zip(student[b, :, :, t].reshape(-1, 4), teacher[b, :, :, t].reshape(-1, 4), strict=True):
            directions.append(1 - float(s @ p) / math.sqrt(float(s @ s) * float(p @ p)))
            magnitudes.append((math.log(float(s @ s)) / 2 - math.log(float(p @ p)) / 2) ** 2)
    expected = 0.7 * sum(directions) / len(directions) + 0.05 * sum(magnitudes) / len(magnitudes)
    settings = MercatorLoss(alpha=0.7, beta=0.05).model_dump()
    assert float(kv_loss(settings, student, teacher, mask)) == pytest.approx(expected, rel=1e-5)


def test_mse_agrees_with_torch() -> None:
    student, teacher = torch.randn(SHAPE), torch.randn(SHAPE)
    expected = torch.nn.functional.mse_loss(student, teacher)
    torch.testing.assert_close(kv_loss(SETTINGS[1], student, teacher, torch.ones(2, 5)), expected)


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0.0), (0.01, 0.01 * math.log(100) ** 2)])
def test_same_direction_at_magnitudes_100_and_1(beta: float, expected: float) -> None:
    direction = torch.nn.functional.normalize(torch.randn(SHAPE), dim=-1)
    settings = MercatorLoss(beta=beta).model_dump()
    assert float(kv_loss(settings, 100 * direction, direction, torch.ones(2, 5))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("degrees", "cosine"), [(0, 1.0), (30, 0.8660254), (60, 0.5), (90, 0.0), (180, -1.0)])
def test_mercator_measures_the_angle(degrees: int, cosine: float) -> None:
    angle = math.radians(degrees)
    student = torch.tensor([1.0, 0.0]).expand(1, 1, 1, 1, 2)
    teacher = torch.tensor([math.cos(angle), math.sin(angle)]).expand(1, 1, 1, 1, 2)
    loss = kv_loss(MercatorLoss(beta=0.0).model_dump(), student, teacher, torch.ones(1, 1))
    assert float(loss) == pytest.approx(1 - cosine, abs=1e-6)
