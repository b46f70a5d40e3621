"""Where marks tell models apart no longer, and by what a report judges them then.

A share of right answers under 2%, or under two right answers, is what guessing and chance leave: between two models
there, no test over questions finds what the models have learnt. The negative log-likelihood of the gold answers moves
long before the first answer is right, so it is what comparisons and verdict are of, wherever it is known.
"""

from collections.abc import Iterable, Sequence

from kava.report.evaluated import Evaluation
from kava.report.finished import Runs
from kava.report.format import Scale
from kava.tasks.metric import ANSWER_NLL, Metric

FLOOR = 0.02


def about_zero(shares: Iterable[tuple[float | None, int]]) -> bool:
    """Whether every share of right answers, each with its number of questions, is at the floor; none is not known."""
    known = list(shares)
    return bool(known) and all(share is not None and share < max(FLOOR, 2 / max(n, 1)) for share, n in known)


def judged_by(metrics: Sequence[Metric], runs: Runs, base: Evaluation) -> tuple[tuple[Metric, ...], str | None]:
    """The metrics, the one of comparisons and verdict first, and why it is not the task's, in words, if it is not.

    Parameters
    ----------
    metrics
        The task's primary one first.
    runs
        Arm → seed → run. All of them, and `base`, have to be at the floor: a base student that answers, and whose
        trained students do not, is told by accuracy. The teacher says nothing of students.
    base
        The student that was not trained.
    """
    primary = metrics[0]
    trained = [run.evaluation for seeds in runs.values() for run in seeds.values()]
    shares = [(each.means[primary.name], each.n) for each in (*trained, base)]
    known = ANSWER_NLL in metrics and all(each.knows(ANSWER_NLL) for each in trained)
    if not (primary.proportion and known and trained and about_zero(shares)):
        return tuple(metrics), None
    top = max(share or 0.0 for share, _ in shares)
    others = [metric for metric in metrics if metric != ANSWER_NLL]
    return (ANSWER_NLL, *others), (
        f"{primary.label} is at its floor (the best student has {Scale(primary).value(top)}), so {ANSWER_NLL.label} is "
        "compared"
    )
