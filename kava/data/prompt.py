"""Ids of a text and of a prompt, made in one place: evaluation asks exactly what training has read."""

from typing import Any, NamedTuple

from kava.errors import UserError


class TextIds(NamedTuple):
    """Ids of a text, and for each the characters `(start, end)` that it stands for; `(0, 0)` for a start token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def text_ids(tokenizer: Any, text: str) -> TextIds:
    """Ids of a text as a model reads it while it goes on: with the tokenizer's start token, and without an end.

    Parameters
    ----------
    tokenizer
        A fast tokenizer. What it puts before a text by itself is kept, once also where the text begins with it;
        what it appends by itself, such as the end token of T5, is left out. Special tokens that the text spells out
        are kept.
    text
        Text of an example, or its beginning.

    Raises
    ------
    UserError
        The tokenizer knows a part of the text not, and has no token for what it does not know.
    """
    try:
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    except Exception as error:  # the tokenizers library raises nothing more exact
        if type(error) is not Exception:
            raise
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} cannot write {text[:60]!r} ({error}); choose a model whose "
            "tokenizer has all characters of the data, or a token for unknown ones"
        ) from None
    ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    first = 1 if len(ids) > 1 and added[0] and not added[1] and ids[0] == ids[1] == tokenizer.bos_token_id else 0
    end = len(ids)
    while end > first and added[end - 1]:
        end -= 1
    return TextIds(ids[first:end], list(encoded["offset_mapping"])[first:end])


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt: the first of an example, unless the tokenizer merges its end with the answer's beginning."""
    return text_ids(tokenizer, prompt).ids
