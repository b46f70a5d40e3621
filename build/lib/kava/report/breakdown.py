"""Accuracy by length of the question and by steps of its solution: where an arm's right answers come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kava.report.alignment import mean
from kava.report.read import Evaluation
from kava.report.statistics import wilson

# Longer solutions are rare, so they share a bin.
MOST_STEPS = 6
_EQUATION = re.compile(r"<<[^<>]*>>")


def steps_of(gold: str) -> int:
    """Reasoning steps of a GSM8K solution: its calculator annotations `<<...>>`, or its lines where it has none.

    The line of the final answer, `####`, is no step.
    """
    equations = len(_EQUATION.findall(gold))
    lines = [line for line in gold.splitlines() if line.strip() and not line.lstrip().startswith("####")]
    return equations or len(lines)


def words_of(question: str) -> int:
    """Words, as whitespace parts them."""
    return len(question.split())


def _terciles(words: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Questions in three bins by length, as even as ties allow; one without a question is left out."""
    counts = list(words.values())
    short, middle = (int(q) for q in np.quantile(counts, [1 / 3, 2 / 3], method="inverted_cdf"))
    edges = [(min(counts), short), (short + 1, middle), (middle + 1, max(counts))]
    named = [(f"{low}–{high} words" if low < high else f"{low} words", low, high) for low, high in edges]
    bins = [(name, [doc for doc, n in words.items() if low <= n <= high]) for name, low, high in named]
    return [(name, docs) for name, docs in bins if docs]


def _by_steps(steps: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """A bin per number of steps, the longest solutions together."""
    bins: dict[int, list[str]] = {}
    for doc, n in steps.items():
        bins.setdefault(min(n, MOST_STEPS), []).append(doc)

    def name(n: int) -> str:
        more = " or more" if max(steps.values()) > MOST_STEPS and n == MOST_STEPS else ""
        return f"{n}{more} step{'s' if n != 1 else ''}"

    return [(name(n), bins[n]) for n in sorted(bins)]


def break_down(
    evaluations: Mapping[str, Mapping[str, Evaluation]], declared: Mapping[str, Sequence[str]]
) -> dict[str, Any] | None:
    """Strict match by length and by steps.

    Parameters
    ----------
    evaluations : mapping
        Arm → seed → evaluation.
    declared : mapping
        Arm → its declared seeds.

    Returns
    -------
    dict or None
        `length` (terciles of the number of words of the question) and `steps` (of the gold solution), each a list of
        bins with `name`, `n` questions and `arms`: arm → `rate`, the mean over its seeds (None for an arm without a run
        of each declared seed), and its 95% Wilson interval `ci95` with that n. Only questions that every run answered
        count. None where there are none.
    """
    runs = [evaluation for seeds in evaluations.values() for evaluation in seeds.values()]
    shared = [doc for doc in runs[0].samples if all(doc in run.samples for run in runs)] if runs else []
    if not shared:
        return None
    asked = runs[0].samples

    def row(name: str, docs: list[str]) -> dict[str, Any]:
        arms = {}
        for arm, seeds in evaluations.items():
            rates = [mean([line.samples[doc]["strict_match"] for doc in docs]) for line in seeds.values()]
            rate = mean(rates) if set(seeds) == set(declared[arm]) else None
            arms[arm] = {"rate": rate, "ci95": None if rate is None else list(wilson(rate, len(docs)))}
        return {"name": name, "n": len(docs), "arms": arms}

    length = _terciles({doc: words_of(asked[doc]["question"]) for doc in shared})
    steps = _by_steps({doc: steps_of(asked[doc]["gold"]) for doc in shared})
    return {"length": [row(*each) for each in length], "steps": [row(*each) for each in steps]}
