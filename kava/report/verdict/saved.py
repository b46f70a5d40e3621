"""How many steps arms with KV saved, in words: what each has when, beside its control."""

from collections.abc import Sequence

from kava.report.format import integer, listed
from kava.report.statistics.compare import ENOUGH_SEEDS, seeds_in_words
from kava.report.statistics.reach import Reached
from kava.report.steps import StepsSaved
from kava.report.verdict.conclusion import NAMED
from kava.tasks.metric import Metric


def of_steps(rows: Sequence[StepsSaved], metric: Metric) -> list[str]:
    """By the primary metric: each of few pairs at the last step at which its control got better; of more, counts."""
    own = [row for row in rows if row.metric == metric]
    if not own:
        return []
    if len(own) <= NAMED:
        return [_pair(row) for row in own]
    sooner = [row for row in own if (ratio := row.at[max(row.at)].ratio) is not None and ratio < 1]
    return [
        f"of {len(own)} pairs of a KV arm and a control without KV, {len(sooner)} of the KV arms reach in fewer steps "
        f"the {metric.label} on validation questions that the control had when it was last scored to be better"
    ]


def _pair(row: StepsSaved) -> str:
    step = max(row.at)
    at, what = row.at[step], f"the {row.metric.label} that {row.control} had at step {step:,} on validation questions"
    if at.steps is None:
        missed = [seed for seed, steps in at.seeds.items() if steps is None]
        which = "" if len(missed) == len(at.seeds) else f"in {_seeds(missed)} of {len(at.seeds)}, "
        return f"{row.arm} never reaches, {which}within {at.within:,} steps, {what}"
    return f"{row.arm} reaches {what} after {integer(at.steps)} steps ({over_seeds(at)})"


def _seeds(seeds: Sequence[str]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {listed(list(seeds))}"


def over_seeds(at: Reached) -> str:
    """What is known of other seeds: an interval, or that they are too few for one."""
    number = len(at.seeds)
    if at.ci95 is not None:
        return f"95% interval over {seeds_in_words(number)} {integer(at.ci95[0])} to {integer(at.ci95[1])}"
    if number == 1:
        return "one seed"
    each = listed([integer(steps) for steps in at.seeds.values()])
    return f"{seeds_in_words(number)}, {each}: under {ENOUGH_SEEDS}, no interval"


def cell(at: Reached) -> tuple[str, str]:
    """As a table shows it: steps, and below them the share of the control's and what is known of other seeds."""
    if at.steps is None:
        missed = sum(steps is None for steps in at.seeds.values())
        return f"not within {at.within:,}", "" if missed == len(at.seeds) else f"{missed} of {len(at.seeds)} seeds"
    share = f"{100 * (at.ratio or 0.0):.0f}%"
    if at.ci95 is not None:
        return integer(at.steps), f"{share}, {integer(at.ci95[0])} to {integer(at.ci95[1])}"
    return integer(at.steps), f"{share}, {seeds_in_words(len(at.seeds))}"
