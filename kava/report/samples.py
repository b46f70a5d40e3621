"""A dozen questions with every arm's answer side by side, chosen to show where the arms disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.report.read import Evaluation

QUESTIONS = 12
# Characters of sample text in the page, so that a babbling model cannot push it over its 3 MB.
TEXT_BUDGET = 600_000


def _choose(patterns: Mapping[str, tuple[int, ...]], count: int) -> list[str]:
    """`count` questions, disagreements first, each pattern of right and wrong in turn."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for doc, pattern in patterns.items():
        groups.setdefault(pattern, []).append(doc)
    queues = sorted(groups.items(), key=lambda item: (len(set(item[0])) == 1, -len(item[1])))
    disagreeing = [docs for pattern, docs in queues if len(set(pattern)) > 1]
    agreeing = [docs for pattern, docs in queues if len(set(pattern)) == 1]
    chosen: list[str] = []
    for tier in (disagreeing, agreeing):
        depth = max((len(docs) for docs in tier), default=0)
        chosen += [docs[i] for i in range(depth) for docs in tier if i < len(docs)]
    return chosen[:count]


def _longest_allowed(lengths: Sequence[int], budget: int) -> int:
    """The cut at which texts of these lengths fit the budget; short ones leave their share to long ones."""
    left = budget
    for index, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - index)
        if length > share:
            return share
        left -= length
    return max(lengths, default=0)


def pick_samples(evaluations: Mapping[str, Mapping[str, Evaluation]]) -> dict[str, Any]:
    """The questions to show.

    Parameters
    ----------
    evaluations : mapping
        Arm → seed → evaluation. The first seed that every arm has is shown.

    Returns
    -------
    dict
        `seed`, `arms`, `disagreements` (how many questions the arms do not all get right or all wrong), `of`
        (how many they share) and `questions`: doc_id, question, gold, and per arm the answer, both marks and
        `left_out`, the characters that were cut because the sample texts together would have been too long.
    """
    arms = list(evaluations)
    seeds = [s for s in next(iter(evaluations.values()), {}) if all(s in evaluations[a] for a in arms)]
    if not seeds:
        return {"seed": None, "arms": arms, "disagreements": 0, "of": 0, "questions": []}
    shown = {arm: evaluations[arm][seeds[0]] for arm in arms}
    first = next(iter(shown.values()))
    common = [doc for doc in first.samples if all(doc in e.samples for e in shown.values())]
    marks = {arm: e.scores() for arm, e in shown.items()}
    patterns = {doc: tuple(marks[arm][doc] for arm in arms) for doc in common}
    chosen = _choose(patterns, QUESTIONS)

    texts = [first.samples[doc][key] for doc in chosen for key in ("question", "gold")]
    texts += [e.samples[doc]["answer"] for e in shown.values() for doc in chosen]
    limit = _longest_allowed([len(text) for text in texts], TEXT_BUDGET)

    def answer(arm: str, doc: str) -> dict[str, Any]:
        line = shown[arm].samples[doc]
        return {
            "text": line["answer"][:limit],
            "left_out": max(0, len(line["answer"]) - limit),
            "strict_match": int(line["strict_match"]),
            "flexible_extract": int(line["flexible_extract"]),
        }

    return {
        "seed": seeds[0],
        "arms": arms,
        "disagreements": sum(len(set(pattern)) > 1 for pattern in patterns.values()),
        "of": len(common),
        "questions": [
            {
                "doc_id": doc,
                "question": first.samples[doc]["question"][:limit],
                "gold": first.samples[doc]["gold"][:limit],
                "answers": {arm: answer(arm, doc) for arm in arms},
            }
            for doc in chosen
        ],
    }
