"""The verdict: one sentence that says what the declared comparisons show, by rules written down here.

"Shown" means a Holm-adjusted p below 0.05. A *control* is an arm without usable KV signal, a *KV arm* is any
other. The first rule that applies decides the outcome:

1. Every arm about zero (mean strict match under 2%, or under two right answers a run): *no difference shown*,
   "No arm answers these questions: nothing can be concluded from accuracy".
2. KV arms were compared with controls and none is shown to be better than all controls it was compared with:
   *no KV arm beats its control*. Whatever the KV arms show among themselves follows after it.
3. Pairs of a `flat*` and a `structured` aligner: *structured beats flat* or *flat beats structured* if all
   declared pairs show it, else *no difference shown*. (One pair of several may owe its result to the
   parameter count, so a verdict on structure needs all of them.)
4. No such pair: the other declared comparisons, "a beats b" for each that shows a difference, or *no
   difference shown*.

Fewer than 3 seeds, fewer than 200 questions, unequal terms and comparisons that could not be made are said in
the same sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kava.report.format import percent, points, probability

ALPHA = 0.05
FLOOR = 0.02
ENOUGH_SEEDS = 3
ENOUGH_QUESTIONS = 200

STRUCTURED = "structured beats flat"
FLAT = "flat beats structured"
NO_DIFFERENCE = "no difference shown"
NO_CONTROL_BEATEN = "no KV arm beats its control"

Row = Mapping[str, Any]


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


def winner_of(row: Row) -> str | None:
    """The arm that the comparison shows to be better, None if it shows no difference."""
    if row["p_value_holm"] is None or row["p_value_holm"] >= ALPHA or row["delta"] == 0:
        return None
    return row["a"] if row["delta"] > 0 else row["b"]


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


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _claim(rows: Sequence[Row], arms: Mapping[str, Row]) -> list[str]:
    return [_numbers(row, arms, winner_of(row) or row["a"]) for row in rows]


def _caveats(arms: Mapping[str, Row], unusable: Sequence[Row], controls: Sequence[str], unequal: int) -> list[str]:
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
    if unusable:
        pairs = ", ".join(f"{row['a']} and {row['b']}" for row in unusable)
        caveats.append(f"not comparable: {pairs}")
    if unequal:
        caveats.append(f"the terms were not equal: {unequal} mismatch{'es' if unequal > 1 else ''}")
    return caveats


def _about_zero(arms: Mapping[str, Row]) -> bool:
    runs = [run for arm in arms.values() for run in arm["seeds"].values()]
    return bool(runs) and all(
        run["strict_match"] is not None and run["strict_match"] < max(FLOOR, 2 / max(run["n"], 1)) for run in runs
    )


def _structure(pairs: Sequence[Row], arms: Mapping[str, Row]) -> tuple[str, str]:
    kinds = {arms[winner]["aligner"] if (winner := winner_of(row)) else None for row in pairs}
    sides = {kind if kind in (None, "structured") else "flat" for kind in kinds}
    if sides == {"structured"}:
        return STRUCTURED, "Structured beats flat"
    if sides == {"flat"}:
        return FLAT, "Flat beats structured"
    if sides == {None}:
        return NO_DIFFERENCE, "No difference shown between structured and flat"
    return NO_DIFFERENCE, "No consistent difference shown between structured and flat"


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
    unusable = [row for row in comparisons if row["delta"] is None]
    caveats = _caveats(arms, unusable, controls, len(mismatches))

    if _about_zero(arms):
        top = max(run["strict_match"] for arm in arms.values() for run in arm["seeds"].values())
        caveats.insert(0, f"the best run has a strict match of {percent(top)}")
        headline = "No arm answers these questions: nothing can be concluded from accuracy"
        return Verdict(NO_DIFFERENCE, headline, [], caveats)
    if not usable:
        return Verdict(NO_DIFFERENCE, "Nothing shown: no declared comparison could be made", [], caveats)

    against: dict[str, list[Row]] = {}
    between: list[Row] = []
    for row in usable:
        kv = [name for name in (row["a"], row["b"]) if name not in controls]
        if len(kv) == 1:
            against.setdefault(kv[0], []).append(row)
        elif len(kv) == 2:
            between.append(row)
    better = [name for name, rows in against.items() if all(winner_of(row) == name for row in rows)]

    def is_pair(row: Row) -> bool:
        kinds = sorted(arms[name]["aligner"] or "" for name in (row["a"], row["b"]))
        return kinds[0].startswith("flat") and kinds[1] == "structured"

    pairs = [row for row in between if is_pair(row)]
    if against and not better:
        numbers = [_numbers(row, arms, name) for name, rows in against.items() for row in rows]
        if pairs:
            headline = _structure(pairs, arms)[1]
            numbers.append(f"among the KV arms: {headline[0].lower()}{headline[1:]}, {_claim(pairs, arms)[0]}")
        return Verdict(NO_CONTROL_BEATEN, "No KV arm beats its control", numbers, caveats)

    if pairs:
        outcome, headline = _structure(pairs, arms)
        numbers = _claim(pairs, arms)
        if against:
            worse = [name for name in against if name not in better]
            faced = dict.fromkeys(c for rows in against.values() for r in rows for c in (r["a"], r["b"]))
            named = ", ".join(name for name in faced if name in controls)
            said = f"of the KV arms, {_listed(better)} beat{'s' if len(better) == 1 else ''} control ({named})"
            numbers.append(f"{said}, {_listed(worse)} not shown to" if worse else said)
        return Verdict(outcome, headline, numbers, caveats)

    rows = between or [row for rows in against.values() for row in rows]
    shown = [row for row in rows if winner_of(row)]
    if not shown:
        return Verdict(NO_DIFFERENCE, "No difference shown", _claim(rows, arms), caveats)
    claims = [f"{w} beats {row['b'] if w == row['a'] else row['a']}" for row in shown if (w := winner_of(row))]
    headline = "; ".join(claims)
    return Verdict(headline, headline[0].upper() + headline[1:], _claim(shown, arms), caveats)
