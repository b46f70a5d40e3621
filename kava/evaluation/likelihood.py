"""How likely a model finds the right answers: their negative log-likelihood per token, by one forward each."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from kava.data.tokens import Segment
from kava.kv import pad_ids

# Logits of one forward, at most, unless a single example has more: in fp32 and once more for their logarithms, 1 GiB.
LOGITS_AT_ONCE = 2**27


@torch.inference_mode()
def answer_nll(
    model: Any, input_ids: Sequence[np.ndarray], segments: Sequence[np.ndarray], batch_size: int
) -> list[float]:
    """Mean negative log-likelihood of the tokens of each example's answer, given all tokens before them.

    Every token behind the prompt counts, the end token included. Examples are padded on the right and masked, so that
    batches change nothing but rounding.

    Parameters
    ----------
    model
        A causal language model.
    input_ids, segments
        Ids and `Segment` of each example, `[T]`.
    batch_size
        Examples per forward at most, fewer where their logits would be more than `LOGITS_AT_ONCE`.

    Returns
    -------
    list of float
        Nats per token, in the order of the examples.
    """
    # What nothing stands before is not predicted, should the prompt's one token be merged with the answer's first.
    starts = [max(1, int(np.argmax(of_example != Segment.PROMPT))) for of_example in segments]
    lengths, vocabulary = [len(ids) for ids in input_ids], model.config.get_text_config().vocab_size
    values = [0.0] * len(input_ids)
    for batch in batches(lengths, starts, batch_size, vocabulary):
        ids, mask = (x.to(model.device) for x in pad_ids([input_ids[example] for example in batch]))
        first = min(starts[example] for example in batch)
        kept = torch.arange(first - 1, ids.shape[1] - 1, device=model.device)  # a token is predicted by the one before
        # The model's own logits: some families change what their head gives.
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
        nll = F.cross_entropy(logits.float().transpose(1, 2), ids[:, first:], reduction="none")
        for row, example in enumerate(batch):
            of_answer = nll[row, starts[example] - first : lengths[example] - first]
            values[example] = float(of_answer.double().mean())
    return values


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
