"""Questions with every arm's answer side by side, as many as the page has room for, those that differ first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kava.report.read import Evaluation

# Bytes of samples in the page, which with the chart library's 0.9 MB and the curves stays under 3 MB.
TEXT_BUDGET = 1_200_000
# The first questions are shown even where every arm babbles; all texts are cut so that these fit half the budget.
FIRST = 12
# What would end or begin a script inside a script element; a backslash sequence says the same in JSON.
_TAG = re.compile(r"<(?=[/!s])", re.IGNORECASE)


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element, whatever a model wrote."""
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _size(value: Any) -> int:
    return len(embedded(value).encode())


def _choose(patterns: Mapping[str, tuple[int, ...]]) -> list[str]:
    """All questions, disagreements first, each pattern of right and wrong in turn."""
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
    return chosen


def _longest_allowed(lengths: Sequence[int], budget: int) -> int:
    """The cut at which texts of these lengths fit the budget; short ones leave their share to long ones."""
    left = budget
    for index, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - index)
        if length > share:
            return share
        left -= length
    return budget


def _cut(text: str, limit: int) -> str:
    """The beginning of a text that takes at most `limit` bytes in the page."""
    while (size := _size(text)) > limit:
        text = text[: len(text) * limit // size]
    return text


def pick_samples(evaluations: Mapping[str, Mapping[str, Evaluation]]) -> dict[str, Any]:
    """The questions to show, and what each arm answered.

    Parameters
    ----------
    evaluations : mapping
        Arm → seed → evaluation. Of the seeds under which every arm answered the same questions, all are shown if
        there is room for all, else the first.

    Returns
    -------
    dict
        `arms`; `seeds` that are shown, and `all_seeds` that could be; `of`, the number of questions that the
        arms share; `disagreements`, on how many of them under the first seed some arms are right and some wrong;
        and `questions`, with doc_id, question, gold and answers: seed → one per arm of [text, strict match,
        flexible match, characters left out], the last more than 0 where a text had to be cut.
    """
    arms = list(evaluations)
    seeds = [s for s in next(iter(evaluations.values()), {}) if all(s in evaluations[a] for a in arms)]
    if not seeds:
        return {"arms": arms, "seeds": [], "all_seeds": [], "disagreements": 0, "of": 0, "questions": []}
    runs = {seed: [evaluations[arm][seed] for arm in arms] for seed in seeds}
    first = runs[seeds[0]][0]
    common = [doc for doc in first.samples if all(doc in e.samples for e in runs[seeds[0]])]
    seeds = [seed for seed in seeds if all(doc in e.samples for e in runs[seed] for doc in common)]
    patterns = {doc: tuple(int(e.samples[doc]["strict_match"]) for e in runs[seeds[0]]) for doc in common}
    chosen = _choose(patterns)

    def lengths(shown: Sequence[str]) -> list[int]:
        asked = [_size(first.samples[doc][key]) for doc in chosen[:FIRST] for key in ("question", "gold")]
        return asked + [_size(e.samples[doc]["answer"]) for doc in chosen[:FIRST] for seed in shown for e in runs[seed]]

    def rows(shown: Sequence[str]) -> list[dict[str, Any]]:
        limit = _longest_allowed(lengths(shown), TEXT_BUDGET // 2)
        return [_row(doc, {seed: runs[seed] for seed in shown}, limit) for doc in chosen]

    shown = seeds
    questions = rows(shown)
    if len(seeds) > 1 and _size(questions) > TEXT_BUDGET:
        shown = seeds[:1]
        questions = rows(shown)
    return {
        "arms": arms,
        "seeds": shown,
        "all_seeds": seeds,
        "disagreements": sum(len(set(pattern)) > 1 for pattern in patterns.values()),
        "of": len(common),
        "questions": _fitting(questions),
    }


def _row(doc: str, runs: Mapping[str, Sequence[Evaluation]], limit: int) -> dict[str, Any]:
    def answer(evaluation: Evaluation) -> list[Any]:
        line = evaluation.samples[doc]
        text = _cut(line["answer"], limit)
        marks = int(line["strict_match"]), int(line["flexible_extract"])
        return [text, *marks, len(line["answer"]) - len(text)]

    asked = next(iter(runs.values()))[0].samples[doc]
    texts = {key: _cut(asked[key], limit) for key in ("question", "gold")}
    return {"doc_id": doc, **texts, "answers": {seed: [answer(e) for e in row] for seed, row in runs.items()}}


def _fitting(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of them that fit the budget together."""
    left = TEXT_BUDGET
    fitting = []
    for question in questions:
        left -= _size(question) + 1
        if left < 0:
            break
        fitting.append(question)
    return fitting
