"""`structural`: direction of keys and of values, and what the keys do to attention.

Shape suffixes: B batch, L layers, A attention heads, H KV heads, T tokens, D head dim.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kava.losses.masking import cosine, counted, masked_mean, widen


def structural(student: Tensor, teacher: Tensor, weight_BT: Tensor) -> Tensor:
    """1 − weighted mean cosine of one tensor, keys or values: `[B, L, H, T, D]`, weights `[B, T]`."""
    return 1.0 - masked_mean(cosine(counted(student, weight_BT), counted(teacher, weight_BT)), weight_BT)


def attention_kl(
    queries_BLATD: Tensor,
    student_keys_BLHTD: Tensor,
    projected_keys_BLHTD: Tensor,
    attention_mask_BT: Tensor,
    weight_BT: Tensor,
    scaling: float,
) -> Tensor:
    """KL(projected ‖ student) of the causal attention that the student's queries pay to either keys, a scalar.

    Parameters
    ----------
    queries_BLATD
        The student's queries, rotated. Detach them, or shrinking them would be a way to a loss of zero.
    student_keys_BLHTD, projected_keys_BLHTD
        Its own keys and the projected teacher's, both rotated by the student's embedding; attention head a reads
        KV head a // (A / H).
    attention_mask_BT
        1 for keys that may be seen.
    weight_BT
        Weight of each query token; the mean is over them, layers and attention heads.
    scaling
        Factor of the logits, the model's own (1/√D in most).
    """
    heads, kv_heads = queries_BLATD.shape[2], student_keys_BLHTD.shape[2]
    assert heads % kv_heads == 0, f"{heads} attention heads cannot share {kv_heads} KV heads evenly"
    tensors = (queries_BLATD.unbind(1), student_keys_BLHTD.unbind(1), projected_keys_BLHTD.unbind(1))
    # Recomputed in the backward pass: the [B, A, T, T] of all layers kept for it would not fit beside a student.
    layers = [
        checkpoint(
            _layer_kl, *layer, attention_mask_BT, weight_BT, scaling, use_reentrant=False, preserve_rng_state=False
        )
        for layer in zip(*tensors, strict=True)
    ]
    return masked_mean(torch.stack(layers, 1), weight_BT)


def _layer_kl(
    queries_BATD: Tensor,
    student_BHTD: Tensor,
    projected_BHTD: Tensor,
    attention_mask_BT: Tensor,
    weight_BT: Tensor,
    scaling: float,
) -> Tensor:
    """`[B, A, T]`."""
    kv_heads, tokens = student_BHTD.shape[1:3]
    seen_BT = attention_mask_BT.bool()
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=seen_BT.device).tril()
    visible = causal & seen_BT[:, None, None, None, :]
    counts = weight_BT[:, None, :, None] > 0
    queries = torch.where(counts, widen(queries_BATD), 0.0).unflatten(1, (kv_heads, -1))

    def log_attention(keys_BHTD: Tensor) -> Tensor:
        keys = torch.where(seen_BT[:, None, :, None], widen(keys_BHTD), 0.0)
        logits = queries @ keys[:, :, None].mT * scaling
        # Finite, so that a row without any visible key is uniform on both sides and not NaN.
        log_probs: Tensor = logits.masked_fill(~visible, torch.finfo(logits.dtype).min).log_softmax(-1)
        return log_probs

    with torch.autocast(queries.device.type, enabled=False):
        log_student, log_projected = log_attention(student_BHTD), log_attention(projected_BHTD)
        kl = nn.functional.kl_div(log_student, log_projected, reduction="none", log_target=True)
    of_queries: Tensor = kl.sum(-1).flatten(1, 2)
    return of_queries
