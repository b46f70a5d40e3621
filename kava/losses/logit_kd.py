"""`logit_kd`: the teacher's stored top-k probabilities as targets of the student's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kava.config.auxiliary import AuxiliaryLoss
from kava.losses.auxiliary import Auxiliary, BothModels, StudentPass
from kava.losses.cross_entropy import LOGITS_AT_ONCE
from kava.losses.masking import widen


class LogitKd(Auxiliary):
    """On the signal's tokens, without the rows of the head that are no tokens: the teacher's are left out as well."""

    name = "logit_kd"
    reads = ("topk_logits",)
    mean_over = "predicted"
    no_tokens: Tensor | None

    def __init__(self, settings: AuxiliaryLoss, models: BothModels) -> None:
        super().__init__(settings, models)
        self.register_buffer("no_tokens", models.no_tokens, persistent=False)

    def forward(self, student: StudentPass, batch: Mapping[str, Tensor]) -> Tensor:
        predicting_NW = student.hidden[-1].flatten(0, 1)[batch["topk_from"]]
        sides, rows = (predicting_NW, batch["topk_ids"], batch["topk_logprobs"]), len(predicting_NW)
        at_once = max(1, LOGITS_AT_ONCE // student.head.get_parameter("weight").shape[0])
        if rows <= at_once:
            return self._of_tokens(student.head, *sides)
        # As for cross entropy: the logits of all tokens at once are the largest tensor of a step.
        pieces = [
            len(piece[0])
            * checkpoint(self._of_tokens, student.head, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in zip(*(side.split(at_once) for side in sides), strict=True)
        ]
        return torch.stack(pieces).sum() / rows

    def _of_tokens(self, head: nn.Module, hidden_NW: Tensor, ids_NK: Tensor, logprobs_NK: Tensor) -> Tensor:
        logits = head(hidden_NW)
        if self.no_tokens is not None:
            logits = logits.masked_fill(self.no_tokens, -torch.inf)
        return logit_kd(logits, ids_NK, logprobs_NK)


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
