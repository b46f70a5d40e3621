"""Whether a model can read a token set and answer its questions: by its `config.json` alone.

Its embedding needs a row for every id, its positions room for every example, and for every prompt with its answer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kava.data.prompt import prompt_ids
from kava.errors import UserError


class Reach(NamedTuple):
    """The largest id of some examples, and the tokens of the longest."""

    largest_id: int
    longest: int


def reach(examples: Iterable[Any]) -> Reach:
    """Reach of examples, each a sequence of ids."""
    largest, longest = -1, 0
    for ids in examples:
        largest, longest = max(largest, int(np.max(ids))), max(longest, len(ids))
    return Reach(largest, longest)


class Longest(NamedTuple):
    """The longest prompt among test questions: its place (from 0), and its length in tokens."""

    question: int
    tokens: int


def embedding_rows(config: Any) -> int | None:
    """Rows of a model's embedding and head; None where its configuration tells none."""
    return _setting(config, "vocab_size")


def positions(config: Any) -> int | None:
    """Tokens that a model can read at once; None for one without a limit, such as with ALiBi.

    The learned positions of GPT-2 end there. RoPE goes on, but past what the model was trained on, or what its own
    scaling (`linear`, `dynamic`, `yarn`) reaches, it gives keys that mean nothing to the model.
    """
    limit = _setting(config, "max_position_embeddings")
    if not isinstance(limit, int) or limit < 1:
        return None
    scaled = [
        int(rope["factor"] * rope.get("original_max_position_embeddings", limit))
        for rope in _ropes(_setting(config, "rope_parameters") or {})
        if rope.get("factor")
    ]
    return max([limit, *scaled])


def require_fit(role: str, model: str, config: Any, of_examples: Reach) -> None:
    """Raise `UserError` unless a model has a row for every id of some examples and a position for every token."""
    rows, limit = embedding_rows(config), positions(config)
    if rows is not None and of_examples.largest_id >= rows:
        raise UserError(
            f"the {role} {model} has {rows:,} embedding rows, and the data has the token id "
            f"{of_examples.largest_id:,}: its tokenizer has tokens that the model does not have; choose the tokenizer "
            "that belongs to the model, or give the model rows for them"
        )
    if limit is not None and of_examples.longest > limit:
        raise UserError(
            f"the {role} {model} has {limit:,} positions, and an example has {of_examples.longest:,} tokens; set "
            f"max_length: {limit} to drop longer examples, or choose a model with more positions"
        )


def longest_prompt(tokenizer: Any, prompts: Sequence[str]) -> Longest:
    """The longest of at least one prompt, in ids of the tokenizer."""
    lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in prompts]
    return max((Longest(number, tokens) for number, tokens in enumerate(lengths)), key=lambda found: found.tokens)


def lack(limits: Mapping[str, int | None], longest: Longest, max_new_tokens: int) -> str | None:
    """Why the longest prompt and an answer do not fit all models, in one sentence; None if they do.

    Parameters
    ----------
    limits
        Model as it is called in the sentence → its positions.
    """
    who, limit = min(
        ((name, limit) for name, limit in limits.items() if limit is not None),
        key=lambda pair: pair[1],
        default=(None, 0),
    )
    if who is None or longest.tokens + max_new_tokens <= limit:
        return None
    largest = limit - longest.tokens
    fix = (
        f"set evaluation.max_new_tokens to {largest} at most"
        if largest > 0
        else f"no max_new_tokens fits: drop test questions whose prompt is longer than {limit - 1} tokens, or "
        "choose a model with more positions"
    )
    return (
        f"the longest prompt (test question {longest.question}, from 0) has {longest.tokens:,} tokens and "
        f"evaluation.max_new_tokens is {max_new_tokens:,}, but {who} has {limit:,} positions, and a prompt is "
        f"never cut; {fix}"
    )


def require_end_after_answer(role: str, model: str, ends: Mapping[int, str], answers: Iterable[np.ndarray]) -> None:
    """Raise `UserError` if a model stops in the middle of the right answers, which it could then never give.

    Parameters
    ----------
    role, model
        Named in the sentence.
    ends
        Ids at which the model's answers end, with their text.
    answers
        Ids of each right answer, without the end token behind it.
    """
    answers = list(answers)
    for end, text in ends.items():
        if cut := sum(bool((ids == end).any()) for ids in answers):
            raise UserError(
                f"the {role} {model} ends its answers at {text!r} (token {end}), which stands within {cut} of "
                f"{len(answers)} training answers; set eos_token_id in its config.json and generation_config.json to "
                "its tokenizer's end token, or, if the answers spell that out, take it out of them"
            )


def no_tokens(tokenizer: Any, rows: int) -> np.ndarray | None:
    """Rows of a head that no token of a tokenizer has, bool `[rows]`; None if every row is a token.

    Embeddings are padded to a round number of rows, by other numbers in models with one tokenizer. What is beyond the
    tokenizer's tokens is no token.
    """
    padding = ~np.isin(np.arange(rows), list(tokenizer.get_vocab().values()))
    return padding if padding.any() else None


def require_more_tokens(tokenizer: Any, top: int) -> None:
    """Raise `UserError` if as many log-probabilities are wanted as there are tokens."""
    tokens = len(set(tokenizer.get_vocab().values()))
    if top >= tokens:
        raise UserError(
            f"kv.signals.topk_logits is {top}, and the tokenizer has {tokens} tokens; set it to at most {tokens - 1}, "
            "32 is usual"
        )


def require_a_row_for_each_token(model: str, tokenizer: Any, rows: int) -> None:
    """Raise `UserError` for a student that cannot give each of the teacher's tokens a probability."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"the student {model} has {rows:,} embedding rows, and its tokenizer ids up to {largest:,}: logit_kd needs "
            "a row for each token; give the model rows for them, or set auxiliary.logit_kd: null"
        )


def _setting(config: Any, name: str) -> Any:
    # A family's configuration need not have it, and a model of text and images keeps it with its text.
    return getattr(config.get_text_config(decoder=True), name, None)


def _ropes(parameters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Settings of RoPE: one, or one for each kind of layer."""
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (of_kind for of_kind in parameters.values() if isinstance(of_kind, Mapping))
