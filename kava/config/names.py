"""Names of experiments and arms, which are folders among our own files."""

import os
from collections.abc import Iterable
from typing import Final

# Beside experiments in results/, which is a cache folder, too, unless `cache_dir` names another.
CACHE_FOLDERS: Final = ("answers", "tokens", "teacher_kv", "references", "bench")
_IN_RESULTS: Final = (
    *CACHE_FOLDERS, "ab_report.html", "ab_report.json", "ab_report.log", "ab_report.benchmark.jsonl",
    "comparison.html", "comparison.json",
)  # fmt: skip
# Beside arms in results/<experiment>/.
_IN_EXPERIMENT: Final = ("record.yaml", "report.html", "report.json", "profile.html")


def check_names(experiment: str, cache: str, arms: Iterable[str]) -> None:
    """Raise ValueError for names that are taken; case is ignored, as some file systems do.

    Parameters
    ----------
    experiment
        Of the folder results/<experiment>/.
    cache
        `cache_dir`.
    arms
        Of the folders in it.
    """
    if experiment.casefold() in _IN_RESULTS:
        raise ValueError(
            f"experiment {experiment!r} is the name of a file or folder of KAVA's own in results/ "
            f"({', '.join(_IN_RESULTS)}); choose another"
        )
    if set("{}") & set(cache):
        raise ValueError(
            f"cache_dir {cache!r} holds braces, which Snakemake reads as a wildcard; name a folder without, or a link "
            "to this one"
        )
    taken = [*_IN_EXPERIMENT]
    below = os.path.relpath(cache, os.path.join("results", experiment)).split(os.sep)[0]
    if below != os.pardir:
        taken += CACHE_FOLDERS if below == os.curdir else [below.casefold()]
    seen: dict[str, str] = {}
    for arm in arms:
        if arm.casefold() in taken:
            raise ValueError(
                f"arms.{arm} is the name of a file or folder of KAVA's own in results/{experiment}/ "
                f"({', '.join(taken)}); choose another"
            )
        if other := seen.get(arm.casefold()):
            raise ValueError(
                f"arms {other!r} and {arm!r} differ in case alone, and are one folder on some file systems; rename one"
            )
        seen[arm.casefold()] = arm
