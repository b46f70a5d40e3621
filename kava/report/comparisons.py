"""The declared comparisons, and each arm against the base student, with Holm's corrections."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kava.report.evaluated import Evaluation
from kava.report.finished import FinishedRun, Runs
from kava.report.statistics.compare import Comparison, compare
from kava.report.statistics.p_values import SeedLevel, holm, minimal_detectable_effect
from kava.tasks.metric import Metric

BASE = "the base student"

# An arm and a seed.
Name = tuple[str, str]


def compare_arms(
    pairs: Sequence[tuple[str, str]], runs: Runs, declared: Mapping[str, Sequence[str]], metric: Metric
) -> tuple[list[Comparison], list[str]]:
    """The comparisons, and a sentence for each pair that could not be compared; `declared` is arm → its seeds.

    Holm's corrections are over those that are different tests: neither of runs that are the same by two names, nor of
    the same runs as an earlier pair.
    """
    rows: list[Comparison] = []
    refusals = []
    first = first_names(runs)
    seen: dict[tuple[tuple[Name, ...], ...], tuple[str, str]] = {}
    for a, b in pairs:
        of_a, of_b = ({s: run.evaluation.scores(metric) for s, run in runs.get(x, {}).items()} for x in (a, b))
        try:
            row = compare(a, b, of_a, of_b, metric)
        except ValueError as error:
            message = str(error)
            refusals.append(f"{message[0].upper()}{message[1:]}.")
            row = Comparison(a, b, metric)
        row = replace(row, complete=set(row.seeds) == set(declared[a]) & set(declared[b]))
        same_a, same_b = (tuple(first[x, seed] for seed in row.seeds) for x in (a, b))
        if row.delta is not None and same_a == same_b:
            same = Comparison(a, b, metric, row.delta, row.rates, n=row.n, seeds=row.seeds, complete=row.complete)
            row = replace(same, identical=True)
        elif row.delta is not None:
            row = replace(row, same_as=seen.get((same_a, same_b)) or seen.get((same_b, same_a)))
            seen.setdefault((same_a, same_b), (a, b))
        rows.append(row)
    different = [row for row in rows if row.tested and row.same_as is None]
    corrected = {(row.a, row.b): row for row in _corrected(different, different)}
    return [_as_corrected(row, corrected) if row.tested else row for row in rows], refusals


def _as_corrected(row: Comparison, corrected: Mapping[tuple[str, str], Comparison]) -> Comparison:
    """The row with its corrections, or with those of the earlier row of the same runs."""
    if row.same_as is None:
        return corrected[row.a, row.b]
    earlier = corrected[row.same_as]
    level = row.seed_level and replace(row.seed_level, p_value_holm=_of_level(earlier.seed_level))
    return replace(
        row,
        p_value_holm=earlier.p_value_holm,
        minimal_detectable_effect=earlier.minimal_detectable_effect,
        seed_level=level,
    )


def _of_level(level: SeedLevel | None) -> float | None:
    return None if level is None else level.p_value_holm


def _corrected(rows: Sequence[Comparison], tests: Sequence[Comparison]) -> list[Comparison]:
    """`rows`, which are the first of `tests`, after Holm's corrections over all of these.

    The tests over seeds have one of their own: students differ from seed to seed, so that of many comparisons some
    pass the t-test.
    """
    over_questions = holm([row.p_value or 0.0 for row in tests])
    levels = [row.seed_level for row in tests if row.seed_level is not None]
    # Where every seed has the same difference t is infinite: it comes first and keeps no value.
    over_seeds = iter(holm([0.0 if level.p_value is None else level.p_value for level in levels]))
    corrected = []
    for row, p_value in zip(rows, over_questions, strict=False):
        level, largest = row.seed_level, 1.0 if row.metric.proportion else float("inf")
        if level is not None:
            adjusted = next(over_seeds)
            level = replace(level, p_value_holm=None if level.p_value is None else adjusted)
        detectable = minimal_detectable_effect(row.difference_sd or 0.0, row.n or 0, len(tests), largest)
        corrected.append(replace(row, p_value_holm=p_value, seed_level=level, minimal_detectable_effect=detectable))
    return corrected


def compare_with_base(
    runs: Runs,
    base: Evaluation,
    declared_seeds: Mapping[str, Sequence[str]],
    comparisons: Sequence[Comparison],
    metric: Metric,
) -> list[Comparison]:
    """Each arm that has runs as `a`, against the base student, which was not trained here: what distilling did at all.

    An arm that answered other questions than the base student has no numbers. These comparisons are not declared, so
    they change no declared one; their own p-values are corrected for all of both, which is the stricter side.

    Parameters
    ----------
    runs, declared_seeds
        Arm → seed → run; arm → its seeds.
    comparisons
        The declared ones, whose p-values count in the correction.
    """
    rows, of_base = [], base.scores(metric)
    for arm, seeds in runs.items():
        if not seeds:
            continue
        scores = {seed: run.evaluation.scores(metric) for seed, run in seeds.items()}
        digests = {run.evaluation.questions_sha256 for run in seeds.values()}
        asked = all(run.keys() == of_base.keys() for run in scores.values())
        if of_base and asked and digests == {base.questions_sha256}:
            row = compare(arm, BASE, scores, dict.fromkeys(scores, of_base), metric)
        else:
            row = Comparison(arm, BASE, metric)
        rows.append(replace(row, complete=set(seeds) == set(declared_seeds[arm])))
    known = [row for row in rows if row.tested]
    declared = [row for row in comparisons if row.tested and row.same_as is None]
    adjusted = iter(_corrected(known, [*known, *declared]))
    return [replace(next(adjusted), minimal_detectable_effect=None) if row.tested else row for row in rows]


def first_names(runs: Runs) -> dict[Name, Name]:
    """Each run by its name → the first name that the same run has, which is mostly its own.

    An experiment that changes one arm leaves the others as they were. Decided by the trained students' files and their
    answers, never by a p-value: two students that were trained apart and happen to score alike are two students.
    """
    distinct: dict[Name, FinishedRun] = {}
    names: dict[Name, Name] = {}
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            own = (arm, seed)
            names[own] = next((name for name, other in distinct.items() if name[1] == seed and _same(run, other)), own)
            distinct.setdefault(names[own], run)
    return names


def _same(a: FinishedRun, b: FinishedRun) -> bool:
    """Whether two runs left the same student, byte for byte, with the same answers to the same questions.

    A student whose manifest does not record the hashes of its files is the same as none.
    """
    files = a.distill.files
    return bool(files) and files == b.distill.files and a.evaluation.answers == b.evaluation.answers
