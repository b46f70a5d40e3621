"""Losses beside the KV loss: CODI, top-k distillation, CKA; and the schedule of weights."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kava.losses.cka import cka_loss
from kava.losses.codi import codi
from kava.losses.logit_kd import logit_kd
from kava.losses.schedule import weight_at


def random(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


STATES = (3, 4, 10)


def test_codi_agrees_with_a_plain_float64_computation() -> None:
    student, teacher = 2 * random(0, STATES), 3 * random(1, STATES) + 1
    layers = []
    for s, t in zip(student.numpy().swapaxes(0, 1), teacher.numpy().swapaxes(0, 1), strict=True):
        error = np.abs(s - t)
        layers.append(np.where(error < 1, error**2 / 2, error - 0.5).mean() / t.std())
    assert float(codi(student, teacher)) == pytest.approx(np.mean(layers), rel=1e-12)
    assert float(codi(student.float(), teacher.float())) == pytest.approx(np.mean(layers), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codi_is_zero_for_equal_states(dtype: torch.dtype) -> None:
    assert codi(random(0, STATES, dtype), random(0, STATES, dtype)) == 0


def test_codi_passes_no_gradient_through_the_std() -> None:
    student, teacher = random(0, STATES)[:, :1], random(1, STATES)[:, :1].requires_grad_()
    fixed = functional.smooth_l1_loss(student, teacher) / teacher.detach().std(correction=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, teacher)[0] for x in (codi(student, teacher), fixed)))


def test_codi_is_finite_for_a_teacher_layer_without_variance() -> None:
    student, teacher = random(0, STATES).requires_grad_(), torch.ones(STATES)
    loss = codi(student, teacher)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


ROWS, VOCABULARY, TOP = 5, 11, 3


def teacher_top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = logits.log_softmax(-1).topk(k)
    return top.indices, top.values


def test_logit_kd_agrees_with_a_plain_float64_computation() -> None:
    logits, teacher = random(0, (ROWS, VOCABULARY)), random(1, (ROWS, VOCABULARY))
    ids, logprobs = teacher_top(teacher, TOP)
    rows = []
    for q, p, top in zip(logits.softmax(-1).tolist(), teacher.softmax(-1).tolist(), ids.tolist(), strict=True):
        pairs = [(p[i], q[i]) for i in top]
        pairs.append(tuple(sum(x[i] for i in range(VOCABULARY) if i not in top) for x in (p, q)))
        rows.append(sum(a * math.log(a / b) for a, b in pairs))
    assert float(logit_kd(logits, ids, logprobs)) == pytest.approx(sum(rows) / ROWS, rel=1e-12)
    assert float(logit_kd(logits.float(), ids, logprobs.half())) == pytest.approx(sum(rows) / ROWS, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logit_kd_is_zero_where_the_top_k_probabilities_agree(dtype: torch.dtype) -> None:
    logits = random(0, (ROWS, VOCABULARY), dtype)
    ids, logprobs = teacher_top(logits.float(), TOP)
    assert logit_kd(logits, ids, logprobs).abs() < 1e-6


def test_logit_kd_ignores_how_the_student_divides_the_rest() -> None:
    student, teacher = random(0, (1, VOCABULARY)), random(1, (1, VOCABULARY))
    ids, logprobs = teacher_top(teacher, TOP)
    others = [i for i in range(VOCABULARY) if i not in ids[0].tolist()]
    exchanged = student.clone()
    exchanged[0, others] = student[0, others[::-1]]
    torch.testing.assert_close(logit_kd(exchanged, ids, logprobs), logit_kd(student, ids, logprobs))


def test_logit_kd_over_all_but_one_token_is_the_full_kl() -> None:
    logits, teacher = random(0, (ROWS, VOCABULARY)).requires_grad_(), random(1, (ROWS, VOCABULARY))
    loss = logit_kd(logits, *teacher_top(teacher, VOCABULARY - 1))
    expected = functional.kl_div(
        logits.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - teacher.softmax(-1)).detach() / ROWS)


@pytest.mark.parametrize("total", [0.999999, 1.0, 1.001])
def test_logit_kd_is_stable_where_rounding_leaves_no_rest(total: float) -> None:
    ids = torch.tensor([[4, 2]])
    logprobs = torch.log(total * torch.tensor([[0.75, 0.25]]))
    logits = torch.full((1, VOCABULARY), -200.0)
    logits[0, 4], logits[0, 2] = math.log(0.75), math.log(0.25)
    logits.requires_grad_()
    loss = logit_kd(logits, ids, logprobs)
    assert -1e-6 < loss < 1e-3
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_logit_kd_of_stored_half_precision_is_never_much_below_zero() -> None:
    # Peaked, so that the float16 sums of some rows exceed 1.
    teacher = 6 * random(1, (200, VOCABULARY))
    ids, logprobs = teacher_top(teacher, TOP)
    stored = logprobs.half()
    assert (stored.float().exp().sum(-1) > 1).any()
    assert -1e-6 < float(logit_kd(teacher.float(), ids, stored)) < 1e-4


def test_a_teacher_of_the_whole_vocabulary_is_refused() -> None:
    logits = random(0, (ROWS, TOP))
    with pytest.raises(AssertionError, match="leave no rest"):
        logit_kd(logits, *teacher_top(logits, TOP))


BATCH, LAYERS, KV_HEADS, TOKENS, DIM = 2, 3, 2, 7, 4
KEYS = (BATCH, LAYERS, KV_HEADS, TOKENS, DIM)
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]])
WIDER = (BATCH, LAYERS, 3, TOKENS, 5)


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (2012), eq. 5, on kernels with zero diagonals."""

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        k, m = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        n = len(k)
        product = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        return (np.trace(k @ m) + product) / (n * (n - 3))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def test_cka_loss_agrees_with_the_definition_in_float64() -> None:
    student, teacher = random(0, KEYS), random(1, WIDER)
    teacher[:, :, :KV_HEADS, :, :DIM] += student
    scores = []
    for layer in range(LAYERS):
        x, y = (
            np.array([side[b, layer, :, t].flatten().numpy() for b, t in MASK.nonzero().tolist()])
            for side in (student, teacher)
        )
        scores.append(debiased_cka(x, y))
    assert float(cka_loss(student, teacher, MASK)) == pytest.approx(1 - np.mean(scores), rel=1e-10)
    assert float(cka_loss(student.float(), teacher.float(), MASK)) == pytest.approx(1 - np.mean(scores), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cka_loss_is_zero_for_equal_and_for_scaled_tensors(dtype: torch.dtype) -> None:
    x = random(0, KEYS, dtype)
    assert cka_loss(x, 4 * x, MASK).abs() < 1e-5


@pytest.mark.parametrize("poison", [1e30, float("inf"), float("nan")])
def test_masked_tokens_have_no_influence_on_cka_loss(poison: float) -> None:
    student, teacher = random(0, KEYS).requires_grad_(), random(1, WIDER).requires_grad_()
    expected = cka_loss(student, teacher, MASK)
    masked = MASK[:, None, None, :, None] == 0
    poisoned = [x.detach().masked_fill(masked, poison).requires_grad_() for x in (student, teacher)]
    loss = cka_loss(*poisoned, MASK)
    assert torch.equal(loss, expected)
    gradients = (torch.autograd.grad(loss, poisoned), torch.autograd.grad(expected, (student, teacher)))
    for gradient, clean_gradient in zip(*gradients, strict=True):
        assert torch.equal(gradient, clean_gradient)
        assert not gradient.masked_select(masked).any()


def test_cka_loss_has_a_finite_gradient_at_zero_vectors() -> None:
    student, teacher = torch.zeros(KEYS, requires_grad=True), random(1, WIDER, torch.float32)
    loss = cka_loss(student, teacher, MASK)
    assert loss == 1
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_cka_loss_of_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    student, teacher = random(0, KEYS, torch.bfloat16), random(1, WIDER, torch.bfloat16)
    expected = cka_loss(student.float(), teacher.float(), MASK)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cka_loss(student, teacher, MASK), expected)


def test_cka_loss_refuses_a_batch_of_three_tokens() -> None:
    three = torch.zeros(BATCH, TOKENS)
    three[0, :3] = 1
    with pytest.raises(AssertionError, match="at least 4 tokens, the batch has 3"):
        cka_loss(random(0, KEYS), random(1, KEYS), three)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.1, 1.0), (0.2, 2.0), (0.5, 2.0), (0.6, 2.0), (0.8, 1.0), (1.0, 0.0)]
)
def test_weight_rises_stays_and_falls(progress: float, expected: float) -> None:
    assert weight_at(2.0, progress, warmup_ratio=0.2, decay_ratio=0.4) == pytest.approx(expected)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_weight_is_constant_without_warmup_and_decay(progress: float) -> None:
    assert weight_at(2.0, progress, warmup_ratio=0.0) == 2.0


@pytest.mark.parametrize(("progress", "expected"), [(0.25, 0.25), (0.5, 0.5), (0.75, 0.25 / 0.8), (0.9, 0.1 / 0.8)])
def test_the_lower_of_rise_and_fall_holds_where_they_overlap(progress: float, expected: float) -> None:
    assert weight_at(1.0, progress, warmup_ratio=1.0, decay_ratio=0.8) == pytest.approx(expected)
