"""The verdict: one sentence that says what the declared comparisons show, by rules written down here.

"Shown" means a Holm-adjusted p below 0.05. A *control* is an arm without usable KV signal, a *KV arm* is any
other. The first rule that applies decides the outcome:

1. Every arm about zero (mean strict match under 2%, or under two right answers a run): *no difference shown*,
   "No arm answers these questions: nothing can be concluded from accuracy".
2. KV arms were compared with controls and none is shown to be better than all controls it was compared with:
   *no KV arm beats its control*. Whatever the KV arms show among themselves follows after it.
3. More than 6 comparisons are declared, and some KV arms are shown to be better than all controls they were
   compared with, though others are not: *a and b beat c*, with the names of those arms and of their controls.
4. Pairs of a `flat*` and a `structured` aligner: *structured beats flat* or *flat beats structured* if all
   declared pairs show it, else *no difference shown*. (One pair of several may owe its result to the
   parameter count, so a verdict on structure needs all of them.)
5. More than 6 comparisons, no such pair, and every KV arm beats its controls: as rule 3.
6. No such pair: the other declared comparisons, "a beats b" for each that shows a difference, or *no
   difference shown*.

The numbers of up to 6 comparisons follow in the sentence. Of more, it says how many KV arms were compared with each
control, which are shown to be better, which worse, and that the others show no difference (`verdict_many`); the
numbers stand in the table.

Fewer than 3 seeds, fewer than 200 questions, unequal terms and comparisons that could not be made are said in
the same sentence. So are shown differences that a paired t-test over seeds does not confirm (p above 0.05): the
question-level test takes the trained students as they are, and only seeds tell whether others would differ too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kava.report.format import listed, percent, points, probability
from kava.report.shown import (
    NO_CONTROL_BEATEN,
    NO_DIFFERENCE,
    Row,
    Shown,
    outcome_of,
    sort_out,
    structure,
    unrepeated,
    winner_of,
)
from kava.report.verdict_many import FEW, many

FLOOR = 0.02
ENOUGH_SEEDS = 3
ENOUGH_QUESTIONS = 200


@dataclass(frozen=True)
class Verdict:
    """The outcome, and the sentence in its parts: the claim, the numbers behind it, what limits it."""

    outcome: str
    headline: str
    numbers: list[str]
    caveats: list[str]

    @property
    def sentence(self) -> str:
        """The whole verdict as one sentence."""
        numbers = f": {'; '.join(self.numbers)}" if self.numbers else ""
        caveats = f" – {'; '.join(self.caveats)}" if self.caveats else ""
        return f"{self.headline}{numbers}{caveats}."

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return asdict(self)


def decide(
    arms: Mapping[str, Row],
    comparisons: Sequence[Row],
    controls: Sequence[str],
    mismatches: Sequence[str] = (),
) -> Verdict:
    """Apply the rules above.

    Parameters
    ----------
    arms, comparisons : mapping, sequence of mappings
        As in `ab_report.json`; a comparison that could not be made has `delta` None.
    controls : sequence of str
        Names of the control arms.
    mismatches : sequence of str
        Sentences of the fairness checks; their number is said in the verdict.
    """
    usable = [row for row in comparisons if row["delta"] is not None]
    caveats = _caveats(arms, comparisons, controls, len(mismatches))
    if _about_zero(arms):
        top = max(run["strict_match"] for arm in arms.values() for run in arm["seeds"].values())
        caveats.insert(0, f"the best run has a strict match of {percent(top)}")
        headline = "No arm answers these questions: nothing can be concluded from accuracy"
        return Verdict(NO_DIFFERENCE, headline, [], caveats)
    if not usable:
        return Verdict(NO_DIFFERENCE, "Nothing shown: no declared comparison could be made", [], caveats)
    shown = sort_out(arms, usable, controls)
    return Verdict(*(many if len(comparisons) > FEW else _few)(shown, arms), caveats)


def _few(shown: Shown, arms: Mapping[str, Row]) -> tuple[str, str, list[str]]:
    """Outcome, headline and the numbers of every comparison behind them."""
    against, pairs = shown.against, shown.pairs
    if against and not shown.better:
        numbers = [_numbers(row, arms, name) for name, rows in against.items() for row in rows]
        if pairs:
            headline = structure(pairs, arms)[1]
            numbers.append(f"among the KV arms: {headline[0].lower()}{headline[1:]}, {_claim(pairs, arms)[0]}")
        return NO_CONTROL_BEATEN, "No KV arm beats its control", numbers
    if pairs:
        return *structure(pairs, arms), _claim(pairs, arms) + _beside(shown)
    rows = shown.between or [row for rows in against.values() for row in rows]
    beside = _beside(shown) if shown.between else []
    differing = [row for row in rows if winner_of(row)]
    if not differing:
        return NO_DIFFERENCE, "No difference shown", _claim(rows, arms) + beside
    headline = "; ".join(f"{winner} beats {loser}" for winner, loser in map(outcome_of, differing))
    return headline, headline[0].upper() + headline[1:], _claim(differing, arms) + beside


def _beside(shown: Shown) -> list[str]:
    """What the KV arms did against their controls, said after a claim about the KV arms themselves."""
    if not shown.against:
        return []
    faced = dict.fromkeys(name for rows in shown.against.values() for row in rows for name in (row["a"], row["b"]))
    named = ", ".join(name for name in faced if name in shown.controls)
    said = f"of the KV arms, {listed(shown.better)} beat{'s' if len(shown.better) == 1 else ''} control ({named})"
    return [f"{said}, {listed(shown.missed)} not shown to" if shown.missed else said]


def _claim(rows: Sequence[Row], arms: Mapping[str, Row]) -> list[str]:
    return [_numbers(row, arms, winner_of(row) or row["a"]) for row in rows]


def _numbers(row: Row, arms: Mapping[str, Row], first: str) -> str:
    """The row's numbers in words, turned round where needed so that `first` is named first."""
    a, b, sign = (row["a"], row["b"], 1) if row["a"] == first else (row["b"], row["a"], -1)
    low, high = sorted(sign * edge for edge in row["ci95"])
    rates = [arms[name]["strict_match_mean"] for name in (a, b)]
    return (
        f"strict match is {percent(rates[0])} for {a} and {percent(rates[1])} for {b}, a difference of "
        f"{points(sign * row['delta'])} points (95% interval {points(low)} to {points(high)}, "
        f"Holm-adjusted p = {probability(row['p_value_holm'])})"
    )


def _caveats(arms: Mapping[str, Row], rows: Sequence[Row], controls: Sequence[str], unequal: int) -> list[str]:
    seeds = min((len(arm["seeds"]) for arm in arms.values() if arm["seeds"]), default=0)
    n = min((s["n"] for arm in arms.values() for s in arm["seeds"].values()), default=0)
    caveats = [f"{n:,} questions" if n >= ENOUGH_QUESTIONS else f"only {n} questions, under {ENOUGH_QUESTIONS}"]
    if seeds == 1:
        caveats.append("one seed: the interval does not cover seed noise")
    elif seeds < ENOUGH_SEEDS:
        caveats.append(f"only {seeds} seeds: the interval does not cover seed noise")
    else:
        caveats.append(f"{seeds} seeds")
    if not controls:
        caveats.append("no control arm was run")
    if unusable := [row for row in rows if row["delta"] is None]:
        caveats.append(f"not comparable: {_pairs(unusable)}")
    if doubtful := [row for row in rows if unrepeated(row)]:
        differing = sum(winner_of(row) is not None for row in rows)
        said = _pairs(doubtful) if len(rows) <= FEW else f"{len(doubtful)} of {differing} differences"
        caveats.append(f"not shown to repeat over seeds: {said}")
    if unequal:
        caveats.append(f"the terms were not equal: {unequal} mismatch{'es' if unequal > 1 else ''}")
    return caveats


def _pairs(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row['a']} and {row['b']}" for row in rows)


def _about_zero(arms: Mapping[str, Row]) -> bool:
    runs = [run for arm in arms.values() for run in arm["seeds"].values()]
    return bool(runs) and all(
        run["strict_match"] is not None and run["strict_match"] < max(FLOOR, 2 / max(run["n"], 1)) for run in runs
    )
