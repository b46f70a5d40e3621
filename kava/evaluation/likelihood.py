"""How likely a model finds the right answers, and what it finds likeliest at their tokens, by one forward each."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from kava.data.tokens import Segment
from kava.kv import pad_ids
from kava.models.placement import Placed

# Logits of one forward, at most, unless a single example has more: in fp32 and once more for their logarithms, 1 GiB.
LOGITS_AT_ONCE = 2**27


class AnswerScore(NamedTuple):
    """What a model makes of a right answer.

    Attributes
    ----------
    nll
        Mean negative log-likelihood of its tokens, in nats.
    ids, likeliest
        Its tokens, and at each the one that the model finds most probable there, `[A]`.
    """

    nll: float
    ids: np.ndarray
    likeliest: np.ndarray


@torch.inference_mode()
def score_answers(
    placed: Placed, input_ids: Sequence[np.ndarray], segments: Sequence[np.ndarray], batch_size: int
) -> list[AnswerScore]:
    """Score the tokens of each example's answer, given all tokens before them.

    Every token behind the prompt counts, the end token included. Examples are padded on the right and masked, so that
    batches change nothing but rounding.

    Parameters
    ----------
    placed
        A causal language model, in memory or streamed with its head.
    input_ids, segments
        Ids and `Segment` of each example, `[T]`.
    batch_size
        Examples per forward at most, fewer where their logits would be more than `LOGITS_AT_ONCE`.

    Returns
    -------
    list of AnswerScore
        In the order of the examples.
    """
    # What nothing stands before is not predicted, should the prompt's one token be merged with the answer's first.
    starts = [max(1, int(np.argmax(of_example != Segment.PROMPT))) for of_example in segments]
    lengths = [len(ids) for ids in input_ids]
    vocabulary = placed.model.config.get_text_config().vocab_size

    def score(batch: list[int]) -> dict[int, AnswerScore]:
        ids, mask = (x.to(placed.device) for x in pad_ids([input_ids[example] for example in batch]))
        first = min(starts[example] for example in batch)
        kept = torch.arange(first - 1, ids.shape[1] - 1, device=placed.device)  # a token is predicted by the one before
        # The model's own logits: some families change what their head gives.
        logits = placed.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
        nll = F.cross_entropy(logits.float().transpose(1, 2), ids[:, first:], reduction="none")
        likeliest = logits.argmax(-1).cpu().numpy()
        found = {}
        for row, example in enumerate(batch):
            answer = slice(starts[example] - first, lengths[example] - first)
            own = np.asarray(input_ids[example])[starts[example] :]
            found[example] = AnswerScore(float(nll[row, answer].double().mean()), own, likeliest[row, answer])
        return found

    planned = list(batches(lengths, starts, batch_size, vocabulary))
    tokens = [len(batch) * lengths[batch[0]] for batch in planned]
    scores: dict[int, AnswerScore] = {}
    for found in placed.run([partial(score, batch) for batch in planned], tokens):
        scores |= found
    return [scores[example] for example in range(len(input_ids))]


def batches(lengths: Sequence[int], starts: Sequence[int], batch_size: int, vocabulary: int) -> Iterator[list[int]]:
    """Examples in batches of like length, the longest first, so that what does not fit fails at once.

    Parameters
    ----------
    lengths, starts
        Tokens of each example, and of its prompt.
    batch_size, vocabulary
        Examples of a batch at most, and logits of a token.
    """
    batch: list[int] = []
    for example in sorted(range(len(lengths)), key=lambda example: -lengths[example]):
        wider = [*batch, example]
        tokens = lengths[wider[0]] - min(starts[example] for example in wider)
        if batch and (len(wider) > batch_size or len(wider) * tokens * vocabulary > LOGITS_AT_ONCE):
            yield batch
            wider = [example]
        batch = wider
    if batch:
        yield batch
