"""Which runs are the same by two names: an experiment that changes one arm leaves the others as they were.

Decided by the trained students' files and their answers, never by a p-value: two students that were trained apart and
happen to score alike are two students.
"""

from __future__ import annotations

from collections.abc import Mapping

from kava.report.read import Run

# An arm and a seed.
Name = tuple[str, str]


def first_names(runs: Mapping[str, Mapping[str, Run]]) -> dict[Name, Name]:
    """Each run (arm → seed → run) by its name → the first name that the same run has, which is mostly its own."""
    distinct: dict[Name, Run] = {}
    names: dict[Name, Name] = {}
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            own = (arm, seed)
            names[own] = next((name for name, other in distinct.items() if name[1] == seed and same(run, other)), own)
            distinct.setdefault(names[own], run)
    return names


def same(a: Run, b: Run) -> bool:
    """Whether two runs left the same student, byte for byte, with the same answers to the same questions.

    A student whose manifest does not record the hashes of its files is the same as none.
    """
    files = a.distill.manifest.get("files")
    return bool(files) and files == b.distill.manifest.get("files") and a.evaluation.samples == b.evaluation.samples
