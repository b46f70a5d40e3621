"""The verdict: one sentence that says what the declared comparisons show, by rules written down here.

A *control* is an arm without usable KV signal, a *KV arm* is any other. A comparison can show two things:
*shown*, of these students, and *repeated*, of the arms (`kava.report.statistics.compare`). Both p-values are
corrected, since either alone lets chance through: the first knows nothing of students trained anew, the second nothing
of other questions. A difference that is shown but not repeated is said of the students, in words that no claim has: "a
scored higher than b in these students (with one seed this shows nothing about the arms)". "Beats" and "better" are kept
for what is repeated; which way is better, the metric says. Arms that are the same runs by two names are named and not
compared. The first rule that applies decides the outcome:

1. Every arm about zero (`kava.report.floor`), where no likelihood of the gold answers is known to judge by: *no
   difference shown*, "No arm answers these questions: nothing can be concluded from accuracy".
2. KV arms were compared with controls, and none beats, repeatedly, all controls it was compared with: *no KV arm
   beats its control*, "No KV arm is shown to beat its control" (that it does not is not shown either). If trained
   students of a KV arm are shown to beat those of all its controls, the headline says that instead; with fewer than 3
   seeds the outcome is then *these students differ; too few seeds to show that it repeats*.
3. Pairs about structure, of an aligner that keeps it and one that flattens it in arms otherwise configured alike:
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
points. How the arms stand against the base student follows, of these students alone: it is no declared comparison
(`against_base`). The numbers of up to 6 comparisons follow, and of one that shows nothing the difference that it would
have shown with 80% power. Of more, it says how many KV arms were compared with each control, which are better, which
worse, and that the others show no difference; the numbers stand in the table. Comparisons of controls with each other
follow, and last how many steps KV arms saved (`kava.report.verdict.saved`).

The number of seeds and questions, arms whose KV loss did nothing (`kava.report.notices`), that intervals are over
questions, failed checks of fairness, comparisons that could not be made, declared seeds that are missing and shown
differences that are not repeated are said in the same sentence. Where comparisons differ in their number of seeds, it
is said of which. Names of arms and of aligner kinds are shown as they are, also where a sentence begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kava.report.clean import Row, grouped
from kava.report.floor import about_zero
from kava.report.format import Scale, listed
from kava.report.results import ArmRow
from kava.report.statistics.compare import ENOUGH_SEEDS, SEED_MISSING, Comparison
from kava.report.verdict.conclusion import conclude, pairs_in_words
from kava.report.verdict.findings import FEW, NO_DIFFERENCE, Configs, Pairs, sort_out
from kava.report.verdict.numbers import counts, each, of_base
from kava.tasks.metric import Metric

ENOUGH_QUESTIONS = 200


@dataclass(frozen=True)
class Verdict(Row):
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


def decide(
    arms: Mapping[str, ArmRow],
    comparisons: Sequence[Comparison],
    controls: Sequence[str],
    configs: Configs,
    metric: Metric,
    mismatches: Sequence[str] = (),
    across: Pairs | None = None,
    against_base: Sequence[Comparison] = (),
    inert: Sequence[str] = (),
    floor: str | None = None,
    saved: Sequence[str] = (),
) -> Verdict:
    """Apply the rules above.

    Parameters
    ----------
    arms, comparisons
        The report's rows.
    controls : sequence of str
        Names of the control arms.
    configs : mapping
        Arm → its configuration, by which a comparison is about structure or not.
    metric : Metric
        The primary one, of which the comparisons are.
    mismatches : sequence of str
        Sentences of the fairness checks; their number is said in the verdict.
    across : sequence of (str, str), optional
        Pairs of arms of the same name in two experiments, in a report over experiments.
    against_base
        Comparisons with the base student.
    inert : sequence of str
        Arms whose KV loss did nothing.
    floor
        Why `metric` is not the task's own, in words.
    saved : sequence of str
        What `kava.report.verdict.saved` says of the steps that arms saved.
    """
    usable = [row for row in comparisons if row.tested]
    identical = [row for row in comparisons if row.identical]
    caveats = _caveats(arms, comparisons, controls, len(mismatches))
    if inert:
        caveats.insert(0, f"the KV loss of {listed(inert)} was inert (see the warnings), so it has shown nothing of KV")
    runs = [(row.primary.mean, row.n) for arm in arms.values() for row in arm.seeds.values()]
    if floor:
        caveats.insert(0, floor)
    if metric.proportion and about_zero(runs):
        top = max(share or 0.0 for share, _ in runs)
        caveats.insert(0, f"the best run has a {metric.label} of {Scale(metric).value(top)}")
        headline = "No arm answers these questions: nothing can be concluded from accuracy"
        return Verdict(NO_DIFFERENCE, headline, [], caveats)
    numbers = of_base(against_base)
    if identical:
        same = pairs_in_words(identical)
        numbers.append(f"identical, and so not compared, as nothing that they depend on differs: {same}")
    if not usable:
        why = "only runs that are the same were compared" if identical else "no declared comparison could be made"
        return Verdict(NO_DIFFERENCE, f"Nothing shown: {why}", numbers, caveats)
    found = sort_out(usable, controls, configs, across)
    outcome, headline = conclude(found, metric)
    numbers += (counts(found) if len(usable) > FEW else each(found, arms)) + list(saved)
    return Verdict(outcome, headline, numbers, caveats)


def _caveats(arms: Mapping[str, ArmRow], rows: Sequence[Comparison], controls: Sequence[str], unfair: int) -> list[str]:
    compared = {name: arm for name, arm in arms.items() if any(name in (row.a, row.b) for row in rows)} or arms
    n = min((row.n for arm in compared.values() for row in arm.seeds.values()), default=0)
    made = [row for row in rows if row.tested]
    caveats = [f"{n:,} questions" if n >= ENOUGH_QUESTIONS else f"only {n} questions, under {ENOUGH_QUESTIONS}"]
    if made:
        groups = grouped((len(row.seeds), row) for row in made)
        for seeds, alike in sorted(groups.items()):
            caveats.append(_of_seeds(seeds, f" for {_which(alike, made)}" if len(groups) > 1 else ""))
        caveats.append("intervals and their p are over questions, of these students")
    else:
        caveats.append(_of_seeds(min((len(arm.seeds) for arm in compared.values()), default=0)))
    if not controls:
        caveats.append("no control arm was run")
    if unusable := [row for row in rows if row.delta is None]:
        caveats.append(f"not comparable: {pairs_in_words(unusable)}")
    if lacking := [row for row in made if not row.complete]:
        caveats.append(f"{SEED_MISSING}: {_which(lacking, made)}")
    if doubtful := [row for row in rows if row.unrepeated and row.complete and not row.few_seeds]:
        differing = f"{len(doubtful)} of {sum(row.shown for row in rows)} differences"
        said = pairs_in_words(doubtful) if len(rows) <= FEW else differing
        caveats.append(f"not shown to repeat over seeds: {said}")
    if unfair:
        caveats.append(f"the comparison is not fair as it stands: {unfair} mismatch{'es' if unfair > 1 else ''}")
    return caveats


def _of_seeds(number: int, where: str = "") -> str:
    if number >= ENOUGH_SEEDS:
        return f"{number} seeds{where}"
    if number == 1:
        return f"one seed{where}, which cannot show that a difference repeats in students trained anew"
    return f"only {number} seeds{where}, too few to show that a difference repeats in students trained anew"


def _which(rows: Sequence[Comparison], of: Sequence[Comparison]) -> str:
    return pairs_in_words(rows) if len(of) <= FEW else f"{len(rows)} of {len(of)} comparisons"
