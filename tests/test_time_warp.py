"""Time warp: teacher rows land on student tokens where numpy.interp puts them."""

import numpy as np
import pytest
import torch

from kava.align.time import interpolation, warp_rows

LENGTHS = [(5, 5), (9, 3), (3, 9), (7, 4), (4, 7), (1, 6), (6, 1), (121, 47)]


def segments(prompt: int, reasoning: int, answer: int) -> np.ndarray:
    return np.repeat(np.array([0, 1, 2], dtype=np.uint8), [prompt, reasoning, answer])


def positions(teacher: int, student: int, ratio: float | None) -> np.ndarray:
    return (np.arange(student) + 0.5) / (ratio or student / teacher) - 0.5


@pytest.mark.parametrize("ratio", [None, 0.3, 1.0, 2.5])
@pytest.mark.parametrize(("teacher", "student"), LENGTHS)
def test_linear_interpolation_is_that_of_numpy(teacher: int, student: int, ratio: float | None) -> None:
    values = np.random.default_rng(0).normal(size=teacher)
    lower, weight = interpolation(teacher, student, ratio, alpha=1.0)
    ours = values[lower] * (1 - weight) + values[np.minimum(lower + 1, teacher - 1)] * weight
    expected = np.interp(positions(teacher, student, ratio), np.arange(teacher), values)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize(("teacher", "student"), LENGTHS)
def test_alpha_zero_reads_the_nearest_row_bit_for_bit(teacher: int, student: int) -> None:
    rows = torch.randn(teacher, 3)
    warped = warp_rows(rows, segments(0, teacher, 0), segments(0, student, 0), ratio=None, alpha=0.0)
    where = positions(teacher, student, None).clip(0, teacher - 1)
    for row, position in zip(warped, where, strict=True):
        distance = np.abs(np.arange(teacher) - position)
        nearest = np.flatnonzero(distance <= distance.min() + 1e-9)
        assert any(torch.equal(row, rows[index]) for index in nearest)


def test_of_two_equally_near_tokens_the_later_is_read() -> None:
    rows = torch.arange(4.0)
    assert warp_rows(rows, segments(0, 4, 0), segments(0, 2, 0), None, alpha=0.0).tolist() == [1, 3]
    assert warp_rows(rows, segments(0, 4, 0), segments(0, 2, 0), None, alpha=1.0).tolist() == [0.5, 2.5]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_alpha_between_is_the_mixture_of_nearest_and_linear(alpha: float) -> None:
    rows = torch.randn(11, 2, 5, dtype=torch.float64)
    lengths = segments(4, 7, 0), segments(3, 5, 0)
    nearest, linear, mixed = (warp_rows(rows, *lengths, ratio=None, alpha=share) for share in (0.0, 1.0, alpha))
    torch.testing.assert_close(mixed, (1 - alpha) * nearest + alpha * linear, atol=1e-12, rtol=0)


def test_segments_are_warped_apart() -> None:
    rows = torch.cat([torch.full((4,), 10.0), torch.full((9,), 20.0), torch.full((3,), 30.0)])
    warped = warp_rows(rows, segments(4, 9, 3), segments(2, 4, 5), ratio=None, alpha=1.0)
    assert warped.tolist() == [10.0] * 2 + [20.0] * 4 + [30.0] * 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_segments_of_equal_length_pass_bit_for_bit(dtype: torch.dtype, alpha: float) -> None:
    rows = torch.randn(12, 2, 3).to(dtype)
    rows[0, 0] = torch.tensor([-0.0, torch.inf, torch.nan])
    same = warp_rows(rows, segments(4, 5, 3), segments(4, 5, 3), ratio=None, alpha=alpha)
    assert same.dtype == dtype
    assert same.view(torch.uint8).tolist() == rows.view(torch.uint8).tolist()
    shorter = warp_rows(rows, segments(4, 5, 3), segments(4, 2, 3), ratio=None, alpha=alpha)
    assert shorter[:4].view(torch.uint8).tolist() == rows[:4].view(torch.uint8).tolist()
    assert torch.equal(shorter[-3:], rows[-3:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    lengths = segments(0, 50, 0), segments(0, 23, 0)
    exact = warp_rows(rows.double(), *lengths, ratio=None, alpha=0.7)
    warped = warp_rows(rows, *lengths, ratio=None, alpha=0.7)
    assert warped.dtype == dtype
    # Float32 before the rounding can move a value that lies between two halves, and then by one of their steps.
    assert (warped == exact.to(dtype)).double().mean() > 0.98
    torch.testing.assert_close(warped.double(), exact, rtol=float(torch.finfo(dtype).eps), atol=1e-6)


def test_ratio_replaces_that_of_the_lengths_in_the_reasoning_only() -> None:
    rows = torch.arange(16.0)
    warped = warp_rows(rows, segments(4, 8, 4), segments(2, 3, 2), ratio=0.5, alpha=1.0)
    # Prompt and answer by their lengths; reasoning at two teacher tokens per student token, not at 8 / 3.
    assert warped.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 12.5, 14.5]


def test_a_ratio_that_runs_past_the_reasoning_stays_on_its_last_token() -> None:
    warped = warp_rows(torch.arange(6.0), segments(1, 4, 1), segments(1, 5, 1), ratio=0.5, alpha=1.0)
    assert warped.tolist() == [0, 1.5, 3.5, 4, 4, 4, 5]


def test_a_ratio_warps_reasoning_of_equal_lengths_too() -> None:
    warped = warp_rows(torch.arange(4.0), segments(0, 4, 0), segments(0, 4, 0), ratio=2.0, alpha=1.0)
    assert warped.tolist() == [0, 0.25, 0.75, 1.25]


def test_ratio_of_one_shifts_no_token() -> None:
    rows = torch.randn(7, 3)
    assert torch.equal(warp_rows(rows, segments(1, 5, 1), segments(1, 5, 1), ratio=1.0, alpha=0.3), rows)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_student_segment_may_be_empty(ratio: float | None) -> None:
    rows = torch.randn(7, 3)
    warped = warp_rows(rows, segments(2, 4, 1), segments(2, 0, 1), ratio, alpha=1.0)
    assert torch.equal(warped, rows[[0, 1, 6]])
    assert warp_rows(rows[:0], segments(0, 0, 0), segments(0, 0, 0), ratio, alpha=1.0).shape == (0, 3)


@pytest.mark.parametrize(
    ("teacher", "student", "named"),
    [((0, 3, 1), (1, 3, 1), "1 tokens of prompt"), ((2, 0, 1), (2, 2, 1), "2 tokens of reasoning"),
     ((2, 3, 0), (2, 2, 4), "4 tokens of answer")],
)  # fmt: skip
def test_student_tokens_without_teacher_tokens_are_refused(teacher: tuple, student: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        warp_rows(torch.randn(sum(teacher), 2), segments(*teacher), segments(*student), None, 1.0)


def test_segments_out_of_order_are_refused() -> None:
    with pytest.raises(AssertionError, match="in order"):
        warp_rows(torch.randn(3, 2), np.array([1, 0, 2], dtype=np.uint8), segments(1, 1, 1), None, 1.0)


def test_gradients_reach_the_rows_that_were_read() -> None:
    rows = torch.randn(9, 2, requires_grad=True)
    warp_rows(rows, segments(2, 6, 1), torch.tensor([0, 0, 1, 1, 2]), None, alpha=1.0).sum().backward()
    assert rows.grad is not None
    assert rows.grad.sum(1).tolist() == [2, 2, 0, 2, 0, 0, 2, 0, 2]
