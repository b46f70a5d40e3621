"""Test questions that stand in the training data: as they are, or sharing a run of eight words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# The shortest of the lengths that GPT-3's authors used, where any shared run counted (8 to 13 words, Brown et al. 2020,
# appendix C), and that of PaLM's, who counted a text of whose runs at least 70% are shared (Chowdhery et al. 2022,
# section 8).
NGRAM = 8
MOST = 0.7
# How many of the questions found are named.
NAMED = 5
SEEN = ("train", "validation")


def normalised(text: str) -> str:
    """Text in lower case and NFKC, with one space for every run of white space and punctuation.

    "It costs $1,000 – why?" becomes "it costs 1 000 why". NFKC and case folding are those of Unicode (UAX 15, and
    chapter 3.13 of the standard), so that a full-width digit equals a plain one and "ß" equals "ss".
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\W_]+", " ", folded).strip()


def word_ngrams(text: str) -> set[str]:
    """Every run of `NGRAM` words of a normalised text; none of a shorter one."""
    words = text.split()
    return {" ".join(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)}


def find_overlap(splits: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, Any]:
    """Count and name the test questions that occur in the training or validation split.

    Parameters
    ----------
    splits
        `train`, `validation` and `test`, each rows with a `question`; also those too long to be trained on.

    Returns
    -------
    dict
        `ngram` (words of a run), `questions` (of the test split), and of three findings the `count`: `same_question`
        (equal after normalising), `shared_ngram` (any run of words is shared) and `mostly_shared` (at least `MOST` of
        its runs are). The first two also name the first few as `found`: `doc_id` (number of the row in the test split,
        as the evaluation counts), with the `split` and `row` of the question that is equal, or with the `words` of the
        first shared run.
    """
    seen: dict[str, tuple[str, int]] = {}
    for split in SEEN:
        for number, row in enumerate(splits[split]):
            seen.setdefault(normalised(row["question"]), (split, number))
    seen_ngrams: set[str] = set().union(*map(word_ngrams, seen))
    same: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    mostly = 0
    for doc_id, row in enumerate(splits["test"]):
        question = normalised(row["question"])
        if question in seen:
            split, number = seen[question]
            same.append({"doc_id": doc_id, "split": split, "row": number})
        ngrams = word_ngrams(question)
        if common := ngrams & seen_ngrams:
            shared.append({"doc_id": doc_id, "words": min(common, key=question.index)})
            mostly += len(common) >= MOST * len(ngrams)
    return {
        "ngram": NGRAM,
        "questions": len(splits["test"]),
        "same_question": {"count": len(same), "found": same[:NAMED]},
        "shared_ngram": {"count": len(shared), "found": shared[:NAMED]},
        "mostly_shared": {"count": mostly},
    }
