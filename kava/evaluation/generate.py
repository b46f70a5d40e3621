"""Answers of a model to prompts in batches: the likeliest tokens, or tokens drawn by each answer's own numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from kava.data.prompt import prompt_ids
from kava.evaluation.harness import AnswerStop, prompt_batch


class Generated(NamedTuple):
    """One answer: its text up to its end, how many tokens it took, and whether it ended before the longest length."""

    text: str
    tokens: int
    ended: bool


class Drawn(LogitsProcessor):
    """Leaves each row the one token that its own random numbers draw.

    Parameters
    ----------
    uniforms
        In [0, 1), one per row and token: float64 `[B, T]`.
    temperature, top_p
        As in `draw`.
    prompt_length
        Tokens before the first that is drawn.
    """

    def __init__(self, uniforms: np.ndarray, temperature: float, top_p: float, prompt_length: int) -> None:
        self._uniforms, self._temperature, self._top_p = torch.from_numpy(uniforms), temperature, top_p
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms = self._uniforms[:, input_ids.shape[1] - self._prompt_length].to(scores.device)
        chosen = draw(scores, uniforms, self._temperature, self._top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw one token per row: where the sum of probabilities, in the order of ids, passes the row's number.

    Parameters
    ----------
    logits
        `[B, V]`.
    uniforms
        In [0, 1), float64 `[B]`.
    temperature
        Logits are divided by it.
    top_p
        Only the likeliest tokens can be drawn, the fewest whose probability together is at least this (Holtzman et al.
        2020, arXiv 1904.09751).

    Returns
    -------
    Tensor
        Ids, `[B]`.
    """
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        likeliest, ids = probabilities.sort(descending=True, stable=True)
        likeliest = likeliest.masked_fill(likeliest.cumsum(-1) - likeliest >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, ids, likeliest)
    edges = probabilities.cumsum(-1)
    chosen = torch.searchsorted(edges, uniforms[:, None] * edges[:, -1:], right=True)
    # Rounding may leave a number at the very end; the last token with any probability is drawn.
    last = (edges < edges[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(chosen, last).squeeze(1)


def own_uniforms(seed: int, question: int, sample: int, tokens: int) -> np.ndarray:
    """Random numbers of one answer, float64 `[T]`: the same in whatever batch it is written."""
    return np.random.Generator(np.random.PCG64([seed, question, sample])).random(tokens)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    stop: Sequence[str],
    max_new_tokens: int,
    drawn: tuple[np.ndarray, float, float] | None = None,
) -> list[Generated]:
    """Answers to one batch of prompts, each of which ends by itself.

    Parameters
    ----------
    model, tokenizer
        As `kava.evaluation.harness.prepare` leaves them.
    prompts
        Of the batch.
    stop
        Strings that end an answer, beside the model's end tokens, and are no part of it.
    max_new_tokens
        Longest answer in tokens.
    drawn
        Numbers `[B, max_new_tokens]`, temperature and top-p of tokens that are drawn; None for the likeliest ones.
    """
    ids, mask = (x.to(model.device) for x in prompt_batch(tokenizer, prompts))
    length = ids.shape[1]
    rows = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList([Drawn(*drawn, length)] if drawn else []),
        stopping_criteria=StoppingCriteriaList([AnswerStop(tokenizer, stop, length)] if stop else []),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    ends = model.generation_config.eos_token_id
    return [
        _answer(tokenizer, prompt_ids(tokenizer, prompt), row[length:].tolist(), ends, stop)
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def _answer(tokenizer: Any, prompt: list[int], ids: list[int], ends: Sequence[int], stop: Sequence[str]) -> Generated:
    """What a row wrote; behind its end it is padded."""
    first_end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    own = ids[:first_end]
    with_special = _decode(tokenizer, own, special=True)  # a stop string may be one
    stopped = any(text in with_special for text in stop)
    if stopped:
        while own[-1] == tokenizer.pad_token_id:
            own = own[:-1]
    # Behind its prompt, since some tokenizers drop the space that a text begins with.
    text = _decode(tokenizer, [*prompt, *own])[len(_decode(tokenizer, prompt)) :]
    for end in stop:
        text = text.split(end)[0]
    by_token = first_end < len(ids) and not stopped
    return Generated(text, len(own) + by_token, stopped or by_token)


def _decode(tokenizer: Any, ids: list[int], special: bool = False) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return text
