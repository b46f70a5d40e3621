"""Whether test questions stand in the training data, in the sentences of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RECORDED = (
    "Whether test questions stand in the training data is not recorded in the token set's manifest; "
    "`kava tokenize` adds it."
)


def check_overlap(tokens: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str], list[str]]:
    """What a token set's manifest records as `overlap`, the mismatches and the warnings that follow from it.

    A test question that was trained on is a mismatch: every accuracy is then too high, and perhaps not equally so. A
    shared run of words is a warning, since word problems share phrases.
    """
    overlap = tokens.get("overlap")
    if overlap is None:
        return None, [], [NOT_RECORDED]
    same, shared, mostly = (overlap[name] for name in ("same_question", "shared_ngram", "mostly_shared"))
    mismatches, warnings = [], []
    if same["count"]:
        where = [f"doc_id {row['doc_id']} is {row['split']} row {row['row']}" for row in same["found"]]
        mismatches.append(
            f"{_of(same['count'], overlap)} in the training data, but for case, spaces and punctuation "
            f"({_some(where, same['count'])})."
        )
    if shared["count"]:
        where = [f"doc_id {row['doc_id']} “{row['words']}”" for row in shared["found"]]
        warnings.append(
            f"{_of(shared['count'], overlap, 'share')} {overlap['ngram']} words in a row with a training question "
            f"({_some(where, shared['count'])}); {mostly['count']:,} of them share at least 70% of their runs. "
            "Word problems have phrases in common, and generated ones whole sentences, so this alone is no leak."
        )
    return overlap, mismatches, warnings


def _of(count: int, overlap: Mapping[str, Any], verb: str = "stand") -> str:
    return f"{count:,} of {overlap['questions']:,} test questions {verb}{'s' if count == 1 else ''}"


def _some(named: Sequence[str], count: int) -> str:
    return ", ".join([*named, "…"] if len(named) < count else named)
