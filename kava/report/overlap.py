"""Whether test questions stand in the training data, in the sentences of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NOT_RECORDED = (
    "Whether test questions stand in the training data is not recorded in the token set's manifest; "
    "`kava tokenize` adds it."
)


class Overlap(NamedTuple):
    """What a token set's manifest records as `overlap`, and what follows from it, in sentences."""

    found: dict[str, Any] | None
    mismatches: list[str]
    warnings: list[str]
    notes: list[str]


def check_overlap(tokens: Mapping[str, Any]) -> Overlap:
    """Whether test questions were trained on, from a token set's manifest.

    A test question that was trained on is a mismatch: every accuracy is then too high, and perhaps not equally so. A
    shared run of words is a note, since word problems share phrases.
    """
    overlap = tokens.get("overlap")
    if overlap is None:
        return Overlap(None, [], [NOT_RECORDED], [])
    same, shared, mostly = (overlap[name] for name in ("same_question", "shared_ngram", "mostly_shared"))
    mismatches, notes = [], []
    if same["count"]:
        where = [f"doc_id {row['doc_id']} is {row['split']} row {row['row']}" for row in same["found"]]
        mismatches.append(
            f"{_of(same['count'], overlap)} in the training data, but for case, spaces and punctuation "
            f"({_some(where, same['count'])})."
        )
    if shared["count"]:
        first = shared["found"][0]
        notes.append(
            f"{_of(shared['count'], overlap, 'share')} {overlap['ngram']} words in a row with a training question "
            f"(doc_id {first['doc_id']} “{first['words']}”), {mostly['count']:,} of them at least 70% of all such runs."
            " Word problems have phrases in common, and generated ones whole sentences, so this alone is no leak."
        )
    return Overlap(overlap, mismatches, [], notes)


def _of(count: int, overlap: Mapping[str, Any], verb: str = "stand") -> str:
    return f"{count:,} of {overlap['questions']:,} test questions {verb}{'s' if count == 1 else ''}"


def _some(named: Sequence[str], count: int) -> str:
    return ", ".join([*named, "…"] if len(named) < count else named)
