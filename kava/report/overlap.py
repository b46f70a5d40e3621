"""Whether test questions stand in the training data, in the sentences of the page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kava.report.notices import of_experiments

NOT_RECORDED = (
    "Whether test questions stand in the training data is not recorded in the token set's manifest; "
    "`kava tokenize` adds it."
)


class Overlap(NamedTuple):
    """What token sets' manifests record as `overlap`, by experiment, and what follows from it, in sentences."""

    found: dict[str, dict[str, Any] | None]
    mismatches: list[str]
    warnings: list[str]
    notes: list[str]


def check_overlap(tokens: Mapping[str, Mapping[str, Any]]) -> Overlap:
    """Whether test questions were trained on, from the manifest of each experiment's token set.

    A test question that was trained on is a mismatch: every accuracy is then too high, and perhaps not equally so. A
    shared run of words is a note, since word problems share phrases.
    """
    found = {name: manifest.get("overlap") for name, manifest in tokens.items()}
    if not found:
        return Overlap({}, [], [NOT_RECORDED], [])
    said = {name: _sentences(overlap) if overlap else ([], []) for name, overlap in found.items()}
    return Overlap(
        found,
        of_experiments({name: mismatches for name, (mismatches, _) in said.items()}),
        of_experiments({name: () if overlap else (NOT_RECORDED,) for name, overlap in found.items()}),
        of_experiments({name: notes for name, (_, notes) in said.items()}),
    )


def _sentences(overlap: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Mismatches and notes of one token set."""
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
    return mismatches, notes


def _of(count: int, overlap: Mapping[str, Any], verb: str = "stand") -> str:
    return f"{count:,} of {overlap['questions']:,} test questions {verb}{'s' if count == 1 else ''}"


def _some(named: Sequence[str], count: int) -> str:
    return ", ".join([*named, "…"] if len(named) < count else named)
