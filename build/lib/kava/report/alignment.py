"""How well projected teacher KV matched student KV, per run, per arm and per head, in plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.grades import collapsed, grade
from kava.report.read import Run

ALIGNMENT = (
    *("cos_sim", "cos_sim_centered", "cos_sim_constant", "angular_distance", "alignment_accuracy", "r2"),
    *("retrieval_at_1", "mag_ratio"),
)
# What is shown by layer and head.
MAPPED = ("cos_sim_centered", "r2")


def alignment_of(run: Run) -> dict[str, Any]:
    """The held-out metrics after distillation; empty for an arm without an aligner."""
    found: dict[str, Any] = run.distill.manifest.get("alignment") or {}
    return found


def has_collapsed(alignment: Mapping[str, Any]) -> bool:
    """Whether one run's projection predicts little more than each channel's mean."""
    return collapsed(alignment.get("cos_sim"), alignment.get("r2"))


def mean(values: Sequence[float | None]) -> float | None:
    """None as soon as one value is missing: what is not known is reported, never averaged over."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def arm_alignment(runs: Sequence[Run], complete: bool) -> dict[str, Any] | None:
    """Means over the seeds of one arm; None for an arm without an aligner.

    Parameters
    ----------
    runs
        Its finished runs.
    complete
        Whether each declared seed is among them.

    Returns
    -------
    dict
        Each metric of `ALIGNMENT`, `grade`, `collapsed` (in any seed), and `per_head`: metric → `[2][L][H]`, keys
        first, or None where the manifests do not hold it. Null wherever a seed's number is null, and where a declared
        seed has no run.
    """
    each = [alignment_of(run) for run in runs]
    if not any(each):
        return None
    means = {name: mean([alignment.get(name) for alignment in each]) if complete else None for name in ALIGNMENT}
    maps = {name: [(alignment.get("per_head") or {}).get(name) for alignment in each] for name in MAPPED}
    return {
        **means,
        "grade": grade(means["cos_sim_centered"]),
        "collapsed": any(has_collapsed(alignment) for alignment in each),
        "per_head": {
            name: _nested_mean(found) if complete and None not in found else None for name, found in maps.items()
        },
    }


def _nested_mean(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], list):
        return [_nested_mean(branches) for branches in zip(*trees, strict=True)]
    return mean(trees)


def over_shuffled(
    configs: Mapping[str, Mapping[str, Any]], alignments: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, dict[str, Any]]:
    """How many times the retrieval of the shuffled arm with an aligner of the same kind each arm reaches.

    Both must compare the same tokens, or retrieval has other odds: their `select` must be equal.

    Parameters
    ----------
    configs, alignments
        Arm → its configuration; arm → what `arm_alignment` returned.

    Returns
    -------
    dict
        Arm → `control` (name of the shuffled arm) and `ratio`, for the arms that have such a control.
    """

    def terms(arm: str) -> tuple[str | None, Any]:
        return (configs[arm].get("aligner") or {}).get("kind"), configs[arm].get("select")

    shuffled = [arm for arm, config in configs.items() if config.get("teacher_kv") == "shuffled"]
    ratios = {}
    for arm, alignment in alignments.items():
        control = next((name for name in shuffled if terms(name) == terms(arm)), None)
        if alignment is None or arm in shuffled or control is None:
            continue
        own, floor = alignment["retrieval_at_1"], (alignments.get(control) or {}).get("retrieval_at_1")
        if own is not None and floor:
            ratios[arm] = {"control": control, "ratio": own / floor}
    return ratios


def first_cka(runs: Mapping[str, Mapping[str, Run]], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """CKA of the base student's layers with the teacher's, `keys` and `values`, `[L_s][L_t]`.

    It depends on the store and the base student alone, so that of the first run that has it is everyone's; but an arm
    with `select` measured it on some of the tokens, and is passed over.
    """
    whole = [seeds for arm, seeds in runs.items() if configs[arm].get("select") is None]
    trained = (run.pretrain for seeds in whole for run in seeds.values() if run.pretrain)
    return next((part.manifest["cka"] for part in trained if part.manifest.get("cka")), None)
