"""The verdict: one sentence that says what the declared comparisons show, by rules written down here.

A *control* is an arm without usable KV signal, a *KV arm* is any other. A comparison can show two things:

- *shown*: Holm-adjusted p below 0.05 in the permutation test over questions. It takes the trained students as they
  are, so it says something about these students and nothing about others.
- *repeated*: shown, there are at least 3 common seeds, and the paired t-test over them has a p of at most 0.05, after
  Holm's correction of these tests. Only this is a claim about the arms, "a beats b". (Where every seed has the same
  difference, t is infinite.) Both p-values are corrected, since either alone lets chance through: the first knows
  nothing of students trained anew, the second nothing of other questions.

Nor is a difference repeated of which a seed that both arms declare is missing: it may be the one that went badly. A
difference that is shown but not repeated is told of the students, in words that no claim has: "a scored higher than b
in these students (with one seed this shows nothing about the arms)". "Beats" and "better" are kept for what is
repeated. Arms that are the same runs by two names are told of and not compared. The first rule that applies decides
the outcome:

1. Every arm about zero (mean strict match under 2%, or under two right answers a run): *no difference shown*,
   "No arm answers these questions: nothing can be concluded from accuracy".
2. KV arms were compared with controls, and none beats, repeatedly, all controls it was compared with: *no KV arm
   beats its control*, "No KV arm is shown to beat its control" (that it does not is not shown either). If trained
   students of a KV arm are shown to beat those of all its controls, the headline says that instead; with fewer than 3
   seeds the outcome is then *these students differ; too few seeds to show that it repeats*.
3. Pairs about structure, that is of a `flat*` and a `structured` aligner in arms that are otherwise configured alike:
   *structured beats flat* or *flat beats structured* if all declared pairs repeat it. (One pair of several may owe
   its result to the parameter count, so a verdict on structure needs all of them.)
4. KV arms beat, repeatedly, all controls they were compared with: *a and b beat c*, with their names.
5. Otherwise, where the pairs, or without such the comparisons of KV arms (without those, of controls) show a
   difference: *a beats b* for each that is repeated; if none is, *these students differ; too few seeds to show that
   it repeats* with fewer than 3 seeds. Else *no difference shown*.

The headline says first whether distilling helped: which KV arms beat their controls, and by how many points. Then come
what the pairs show, or without pairs the comparisons among KV arms. Where no KV arm is shown to beat its control, or
one that the answer speaks of is not, that comes before all else. In a report over several experiments, arms have their
full names, and arms of the same name in two experiments are the first part of the answer, with their differences in
points. How the arms stand against the base student follows, told of these students alone: it is no declared comparison
(`against_base`). The numbers of up to 6 comparisons follow, and of one that shows nothing the difference that it would
have shown with 80% power. Of more, it says how many KV arms were compared with each control, which are better, which
worse, and that the others show no difference (`verdict_many`); the numbers stand in the table. Comparisons of controls
with each other follow last.

The number of seeds and questions, arms whose KV loss did nothing (`kava.report.notices`), that intervals are over
questions, failed checks of fairness, comparisons that could not be made, declared seeds that are missing and shown
differences that are not repeated are said in the same sentence. Where comparisons differ in their number of seeds, it
is said of which. Names of arms and of aligner kinds are shown as they are, also where a sentence begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kava.report.against_base import of_base
from kava.report.conclusion import (
    Configs,
    among_kv,
    conclude,
    missed_in_headline,
    not_shown_to_beat,
    sentence,
)
from kava.report.format import listed, p_equals, percent, points, spread
from kava.report.shown import (
    ENOUGH_SEEDS,
    FEW,
    NO_DIFFERENCE,
    SEED_MISSING,
    Row,
    Shown,
    at_floor,
    pairs_in_words,
    same_runs_in_words,
    shown,
    sort_out,
    tested,
    too_few_seeds,
    unrepeated,
    winner_of,
)
from kava.report.verdict_many import counts

FLOOR = 0.02
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
    configs: Configs,
    mismatches: Sequence[str] = (),
    across: Sequence[tuple[str, str]] | None = None,
    against_base: Sequence[Row] = (),
    inert: Sequence[str] = (),
) -> Verdict:
    """Apply the rules above.

    Parameters
    ----------
    arms, comparisons : mapping, sequence of mappings
        As in `ab_report.json`; a comparison that could not be made has `delta` None.
    controls : sequence of str
        Names of the control arms.
    configs : mapping
        Arm → its configuration, by which a comparison is about structure or not.
    mismatches : sequence of str
        Sentences of the fairness checks; their number is said in the verdict.
    across : sequence of (str, str), optional
        Pairs of arms of the same name in two experiments, in a report over experiments.
    against_base : sequence of mappings
        Rows of `compare_with_base`.
    inert : sequence of str
        Arms whose KV loss did nothing.
    """
    usable = [row for row in comparisons if tested(row)]
    identical = [row for row in comparisons if row["identical"]]
    caveats = _caveats(arms, comparisons, controls, len(mismatches))
    if inert:
        caveats.insert(0, f"the KV loss of {listed(inert)} was inert (see the warnings), so it has shown nothing of KV")
    if _about_zero(arms):
        top = max(run["strict_match"] for arm in arms.values() for run in arm["seeds"].values())
        caveats.insert(0, f"the best run has a strict match of {percent(top)}")
        headline = "No arm answers these questions: nothing can be concluded from accuracy"
        return Verdict(NO_DIFFERENCE, headline, [], caveats)
    same = [same_runs_in_words(identical)] if identical else []
    base = of_base(against_base)
    if not usable:
        why = "only runs that are the same were compared" if identical else "no declared comparison could be made"
        return Verdict(NO_DIFFERENCE, f"Nothing shown: {why}", base + same, caveats)
    found = sort_out(usable, controls, configs, across)
    outcome, headline = conclude(found, configs)
    numbers = counts(found, configs) if len(usable) > FEW else _few(found, arms, configs)
    return Verdict(outcome, headline, base + same + numbers, caveats)


def _few(found: Shown, arms: Mapping[str, Row], configs: Configs) -> list[str]:
    """The numbers of every comparison, and what the headline leaves out."""
    lines = []
    said = missed_in_headline(found)
    if found.better and (missed := [name for name in found.ahead + found.missed if name not in said]):
        lines.append(not_shown_to_beat(missed, found))
    against = [_numbers(row, arms, name) for name, rows in found.against.items() for row in rows]
    across, among = _claim(found.across, arms), _claim(found.between, arms)
    controls = [f"among the controls: {line}" for line in _claim(found.among_controls, arms)]
    if found.missed and not found.better and not found.ahead and among:
        among[0] = f"among the KV arms: {sentence(among_kv(found, configs)[1])}, {among[0]}"
    return lines + across + against + among + controls


def _claim(rows: Sequence[Row], arms: Mapping[str, Row]) -> list[str]:
    return [_numbers(row, arms, winner_of(row) or row["a"]) for row in rows]


def _numbers(row: Row, arms: Mapping[str, Row], first: str) -> str:
    """The row's numbers in words, turned round where needed so that `first` is named first."""
    a, b, sign = (row["a"], row["b"], 1) if row["a"] == first else (row["b"], row["a"], -1)
    low, high = sorted(sign * edge for edge in row["ci95"])
    rates = row["rates"][::sign]
    # The means of the table are over other seeds than the difference, or left out.
    apart = not row["complete"] or any(set(arms[name]["seeds"]) != set(row["seeds"]) for name in (a, b))
    over = f" over {'seeds' if len(row['seeds']) > 1 else 'seed'} {listed(row['seeds'])}" if apart else ""
    detectable = row["minimal_detectable_effect"]
    missed = "" if shown(row) or detectable is None else f"; {spread(detectable)} points would be shown with 80% power"
    return (
        f"strict match is {percent(rates[0])} for {a} and {percent(rates[1])} for {b}{over}, a difference of "
        f"{points(sign * row['delta'])} points (95% interval {points(low)} to {points(high)}, "
        f"Holm-adjusted {p_equals(row['p_value_holm'], at_floor(row))}{missed})"
    )


def _caveats(arms: Mapping[str, Row], rows: Sequence[Row], controls: Sequence[str], unfair: int) -> list[str]:
    compared = {name: arm for name, arm in arms.items() if any(name in (row["a"], row["b"]) for row in rows)} or arms
    n = min((run["n"] for arm in compared.values() for run in arm["seeds"].values()), default=0)
    made = [row for row in rows if tested(row)]
    caveats = [f"{n:,} questions" if n >= ENOUGH_QUESTIONS else f"only {n} questions, under {ENOUGH_QUESTIONS}"]
    if made:
        caveats += _seeds_of_each(made)
    else:
        caveats.append(_of_seeds(min((len(arm["seeds"]) for arm in compared.values()), default=0)))
    if made:
        caveats.append("intervals and their p are over questions, of these students")
    if not controls:
        caveats.append("no control arm was run")
    if unusable := [row for row in rows if row["delta"] is None]:
        caveats.append(f"not comparable: {pairs_in_words(unusable)}")
    if lacking := [row for row in made if not row["complete"]]:
        caveats.append(f"{SEED_MISSING}: {_which(lacking, made)}")
    doubtful = [row for row in rows if unrepeated(row) and row["complete"] and not too_few_seeds([row])]
    if doubtful:
        differing = sum(shown(row) for row in rows)
        said = pairs_in_words(doubtful) if len(rows) <= FEW else f"{len(doubtful)} of {differing} differences"
        caveats.append(f"not shown to repeat over seeds: {said}")
    if unfair:
        caveats.append(f"the comparison is not fair as it stands: {unfair} mismatch{'es' if unfair > 1 else ''}")
    return caveats


def _seeds_of_each(made: Sequence[Row]) -> list[str]:
    """How many seeds the comparisons have, and where they differ in that, which have how many."""
    groups: dict[int, list[Row]] = {}
    for row in made:
        groups.setdefault(len(row["seeds"]), []).append(row)
    return [
        _of_seeds(seeds, f" for {_which(rows, made)}" if len(groups) > 1 else "")
        for seeds, rows in sorted(groups.items())
    ]


def _of_seeds(number: int, where: str = "") -> str:
    if number >= ENOUGH_SEEDS:
        return f"{number} seeds{where}"
    if number == 1:
        return f"one seed{where}, which cannot show that a difference repeats in students trained anew"
    return f"only {number} seeds{where}, too few to show that a difference repeats in students trained anew"


def _which(rows: Sequence[Row], of: Sequence[Row]) -> str:
    return pairs_in_words(rows) if len(of) <= FEW else f"{len(rows)} of {len(of)} comparisons"


def _about_zero(arms: Mapping[str, Row]) -> bool:
    runs = [run for arm in arms.values() for run in arm["seeds"].values()]
    return bool(runs) and all(
        run["strict_match"] is not None and run["strict_match"] < max(FLOOR, 2 / max(run["n"], 1)) for run in runs
    )
