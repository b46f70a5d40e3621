"""`logit_kd`: the teacher's stored top-k probabilities as targets of the student's."""

import torch
from torch import Tensor

from kava.losses.masking import widen


def logit_kd(logits_NV: Tensor, topk_ids_NK: Tensor, topk_logprobs_NK: Tensor) -> Tensor:
    """KL(teacher ‖ student) over K + 1 outcomes: the teacher's top K tokens, and all other tokens as one.

    Parameters
    ----------
    logits_NV
        The student's logits at the N tokens that count, over a vocabulary of V > K.
    topk_ids_NK
        Token ids of the teacher's most probable tokens, int64, distinct.
    topk_logprobs_NK
        Their log probabilities, out of all V tokens.

    Returns
    -------
    Tensor
        Mean over the N tokens, in nats.
    """
    assert topk_ids_NK.shape[1] < logits_NV.shape[1], (
        f"top {topk_ids_NK.shape[1]} of {logits_NV.shape[1]} leave no rest"
    )
    logits = widen(logits_NV)
    logprobs = topk_logprobs_NK.to(logits.dtype)
    # Rounding in the store can lift the sum over 1; a rest below 0 would have no logarithm.
    total_N = logprobs.exp().sum(-1).clamp(min=1.0)
    logprobs = logprobs - total_N.log()[:, None]
    probs = logprobs.exp()
    rest_N = (1.0 - probs.sum(-1)).clamp(min=0.0)
    # From the logits: 1 minus the student's top K has no digits left where the rest is small.
    others = logits.scatter(1, topk_ids_NK, torch.finfo(logits.dtype).min).logsumexp(-1)
    normaliser_N = logits.logsumexp(-1)
    top_N = (probs * (logprobs - logits.gather(1, topk_ids_NK) + normaliser_N[:, None])).sum(-1)
    return (top_N + torch.xlogy(rest_N, rest_N) - rest_N * (others - normaliser_N)).mean()
