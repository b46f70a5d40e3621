"""How well projected teacher KV matched student KV: per arm, per head, and against shuffled KV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.clean import Row
from kava.report.finished import ALIGNMENT, MAPPED, Alignment, FinishedRun, Runs


@dataclass(frozen=True)
class OverShuffled(Row):
    """How many times the retrieval of `control`, the shuffled arm with an aligner of its kind, an arm reaches."""

    control: str
    ratio: float


def mean(values: Sequence[float | None]) -> float | None:
    """None as soon as one value is missing: what is not known is reported, never averaged over."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def arm_alignment(runs: Sequence[FinishedRun], complete: bool) -> Alignment | None:
    """Means over the seeds of one arm; None for an arm without an aligner.

    Parameters
    ----------
    runs
        Its finished runs.
    complete
        Whether each declared seed is among them; nothing is known otherwise, but whether a run collapsed.
    """
    each = [run.distill.alignment or Alignment() for run in runs]
    if not any(run.distill.alignment for run in runs):
        return None
    any_collapsed = any(alignment.collapsed for alignment in each)
    if not complete:
        return Alignment(collapsed=any_collapsed)
    maps = {name: [alignment.per_head[name] for alignment in each] for name in MAPPED}
    return Alignment(
        **{name: mean([alignment.means[name] for alignment in each]) for name in ALIGNMENT},
        per_head={name: _nested_mean(trees) if None not in trees else None for name, trees in maps.items()},
        collapsed=any_collapsed,
    )


def _nested_mean(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], list):
        return [_nested_mean(branches) for branches in zip(*trees, strict=True)]
    return mean(trees)


def over_shuffled(
    configs: Mapping[str, Mapping[str, Any]], alignments: Mapping[str, Alignment | None]
) -> dict[str, OverShuffled]:
    """By arm, for the arms that have such a control.

    Both must compare the same tokens, or retrieval has other odds: their `select` must be equal.

    Parameters
    ----------
    configs, alignments
        Arm → its configuration; arm → what `arm_alignment` returned.
    """

    def terms(arm: str) -> tuple[str | None, Any]:
        return (configs[arm].get("aligner") or {}).get("kind"), configs[arm].get("select")

    shuffled = [arm for arm, config in configs.items() if config.get("teacher_kv") == "shuffled"]
    ratios = {}
    for arm, alignment in alignments.items():
        control = next((name for name in shuffled if terms(name) == terms(arm)), None)
        if alignment is None or arm in shuffled or control is None:
            continue
        own, floor = alignment.retrieval_at_1, (alignments.get(control) or Alignment()).retrieval_at_1
        if own is not None and floor:
            ratios[arm] = OverShuffled(control, own / floor)
    return ratios


def first_cka(runs: Runs, configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, list[list[float | None]]] | None:
    """CKA of the base student's layers with the teacher's, `keys` and `values`, `[L_s][L_t]`.

    It depends on the store and the base student alone, so that of the first run that has it is everyone's; but an arm
    with `select` measured it on some of the tokens, and is passed over.
    """
    whole = [seeds for arm, seeds in runs.items() if configs[arm].get("select") is None]
    trained = (run.pretrain for seeds in whole for run in seeds.values() if run.pretrain)
    return next((part.cka for part in trained if part.cka), None)
