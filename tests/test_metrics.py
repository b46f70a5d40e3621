"""Alignment metrics tell a map from a constant."""

import pytest
import torch

from kava.cache.capture import KeysValues
from kava.metrics import Pair, alignment_metrics, warnings_for

BIAS = 20 * torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(1))


def batches(seed: int, count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Student vectors `[B, L, H, T, D]` with a large constant bias per channel, and ids; one padded token."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(4, 2, 2, 12, 8, generator=generator) + BIAS,
            torch.stack([torch.randperm(40, generator=generator)[:12] for _ in range(4)]),
        )
        for _ in range(count)
    ]


def score(projection) -> dict:
    def predict(batch: tuple[torch.Tensor, torch.Tensor]) -> Pair:
        student, ids = batch
        mask = torch.ones_like(ids)
        mask[:, -1] = 0
        projected = projection(student)
        return Pair(KeysValues(student, student), KeysValues(projected, projected), ids, mask)

    return alignment_metrics(predict, batches(1), batches(2))


def test_a_constant_scores_high_in_raw_cosine_and_is_called_a_collapse() -> None:
    metrics = score(lambda student: BIAS.expand_as(student))
    assert metrics["cos_sim"] > 0.95
    assert metrics["cos_sim"] == pytest.approx(metrics["cos_sim_constant"], abs=1e-3)
    assert metrics["r2"] == pytest.approx(0, abs=0.01)
    assert metrics["retrieval_at_1"] < 0.2
    assert any("collapse" in sentence for sentence in warnings_for(metrics))


def test_a_perfect_map_at_another_scale_explains_everything() -> None:
    metrics = score(lambda student: 3 * student)
    assert metrics["r2"] == pytest.approx(1, abs=1e-4)
    assert metrics["retrieval_at_1"] == 1
    assert metrics["cos_sim_centered"] == pytest.approx(1, abs=1e-4)
    assert metrics["mag_ratio"] == pytest.approx(3, rel=1e-4)
    assert warnings_for(metrics) == []


def test_r2_equals_the_share_of_variance_that_was_planted() -> None:
    generator = torch.Generator().manual_seed(3)
    metrics = score(lambda student: student + torch.randn(student.shape, generator=generator))
    # Signal and noise of equal variance: the best scale is 1/2, and it explains half.
    assert metrics["r2"] == pytest.approx(0.5, abs=0.03)


def test_padding_changes_no_metric() -> None:
    def spoil(student: torch.Tensor) -> torch.Tensor:
        spoiled = student.clone()
        spoiled[:, :, :, -1] = 1e4
        return spoiled

    assert score(spoil) == score(lambda student: student.clone())


def test_a_lost_scale_is_warned_about() -> None:
    assert any("magnitude" in sentence for sentence in warnings_for(score(lambda student: 0.01 * student)))
