"""KL between the attention that student queries pay to projected keys and to the student's own."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from kava.losses.structural import attention_kl

BATCH, LAYERS, HEADS, KV_HEADS, TOKENS, DIM = 2, 3, 6, 2, 7, 4
SCALING = DIM**-0.5
KEYS = (BATCH, LAYERS, KV_HEADS, TOKENS, DIM)
REAL = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
# The first example counts only part of its real tokens.
WEIGHT = torch.tensor([[0.0, 0.5, 2.0, 0.0, 1.0, 0.0, 0.0], [1.0] * 7])


def random(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, the student's keys, projected keys."""
    return random(0, (BATCH, LAYERS, HEADS, TOKENS, DIM), dtype), random(1, KEYS, dtype), random(2, KEYS, dtype)


def test_attention_kl_agrees_with_a_plain_float64_computation() -> None:
    tensors = attention_inputs()
    queries, student, projected = (x.numpy() for x in tensors)
    total = 0.0
    for b, layer, head, t in np.ndindex(BATCH, LAYERS, HEADS, TOKENS):
        seen = [j for j in range(t + 1) if REAL[b, j]]
        both = (student[b, layer, head // 3], projected[b, layer, head // 3])
        logits = [[queries[b, layer, head, t] @ keys[j] * SCALING for j in seen] for keys in both]
        log_s, log_p = log_softmax(logits, axis=1)
        total += float(WEIGHT[b, t]) * float(np.exp(log_p) @ (log_p - log_s))
    expected = total / (float(WEIGHT.sum()) * LAYERS * HEADS)
    assert expected > 0.1
    assert float(attention_kl(*tensors, REAL, WEIGHT, SCALING)) == pytest.approx(expected, rel=1e-12)
    in_float32 = attention_kl(*attention_inputs(torch.float32), REAL, WEIGHT, SCALING)
    assert float(in_float32) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_kl_is_zero_for_equal_keys(dtype: torch.dtype) -> None:
    queries, student, _ = attention_inputs(dtype)
    assert attention_kl(queries, student, student, REAL, WEIGHT, SCALING) == 0


def test_attention_kl_ignores_a_vector_added_to_all_keys_of_a_head() -> None:
    queries, student, projected = attention_inputs()
    expected = attention_kl(queries, student, projected, REAL, WEIGHT, SCALING)
    shifted = student + random(3, (1, LAYERS, KV_HEADS, 1, DIM))
    torch.testing.assert_close(attention_kl(queries, shifted, projected, REAL, WEIGHT, SCALING), expected)


def test_attention_heads_read_their_own_group_of_kv_heads() -> None:
    queries, student, projected = attention_inputs()
    queries[:, :, 3:] = 0  # the heads that read the second KV head attend evenly, whatever its keys
    projected.requires_grad_()
    (gradient,) = torch.autograd.grad(attention_kl(queries, student, projected, REAL, WEIGHT, SCALING), projected)
    assert gradient[:, :, 0].any()
    assert not gradient[:, :, 1].any()


def test_keys_after_the_query_have_no_influence() -> None:
    queries, student, projected = attention_inputs()
    student.requires_grad_(), projected.requires_grad_()
    only_third = torch.zeros(BATCH, TOKENS)
    only_third[:, 2] = 1
    loss = attention_kl(queries, student, projected, REAL, only_third, SCALING)
    for gradient in torch.autograd.grad(loss, (student, projected)):
        assert gradient[:, :, :, :3].ne(0).all()
        assert not gradient[:, :, :, 3:].any()


@pytest.mark.parametrize("poison", [1e30, float("inf"), float("nan")])
def test_padding_and_uncounted_queries_have_no_influence_on_attention_kl(poison: float) -> None:
    clean = [x.requires_grad_() for x in attention_inputs(torch.float32)]
    expected = attention_kl(*clean, REAL, WEIGHT, SCALING)
    dropped = [mask[:, None, None, :, None] == 0 for mask in (WEIGHT, REAL, REAL)]
    poisoned = [x.detach().masked_fill(mask, poison).requires_grad_() for x, mask in zip(clean, dropped, strict=True)]
    loss = attention_kl(*poisoned, REAL, WEIGHT, SCALING)
    assert torch.equal(loss, expected)
    gradients = (torch.autograd.grad(loss, poisoned), torch.autograd.grad(expected, clean))
    for gradient, clean_gradient in zip(*gradients, strict=True):
        assert torch.equal(gradient, clean_gradient)


def test_a_query_that_sees_one_key_or_none_adds_nothing() -> None:
    tensors = [x.requires_grad_() for x in attention_inputs(torch.float32)]
    first_two = torch.zeros(BATCH, TOKENS)
    first_two[:, :2] = 1
    without_first = REAL.clone()
    without_first[:, 0] = 0
    loss = attention_kl(*tensors, without_first, first_two, SCALING)
    assert loss == 0
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, tensors))


def test_gradient_of_attention_kl_reaches_both_keys_and_is_right() -> None:
    queries, student, projected = attention_inputs()
    keys = (student[:1, :1].clone().requires_grad_(), projected[:1, :1].clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda s, p: attention_kl(queries[:1, :1], s, p, REAL[:1], WEIGHT[:1], SCALING), keys
    )


def test_no_attention_map_is_kept_for_the_backward_pass() -> None:
    kept: list[torch.Size] = []
    tensors = [x.requires_grad_() for x in attention_inputs()]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        attention_kl(*tensors, REAL, WEIGHT, SCALING)
    assert kept
    assert not [shape for shape in kept if shape[-2:] == (TOKENS, TOKENS)]


def test_attention_kl_of_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    tensors = attention_inputs(torch.bfloat16)
    expected = attention_kl(*(x.float() for x in tensors), REAL, WEIGHT, SCALING)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_kl(*tensors, REAL, WEIGHT, SCALING), expected)
