"""What to say of alignment metrics: of a projection that has collapsed, and of an arm whose KV loss did nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from kava.grades import COLLAPSE, collapsed, inert

INERT_BEGINS = "inert KV loss"
NAMED = 4  # heads that a warning names


def warnings_for(metrics: dict[str, Any]) -> list[str]:
    """Sentences for the log and the report when a projection has collapsed, lost its scale, or had nothing to predict.

    Parameters
    ----------
    metrics
        What `alignment_metrics` returned.
    """
    per_head = metrics["per_head"]
    heads = [
        (f"{tensor} layer {layer} head {head}", cosine_of_head, per_head["r2"][i][layer][head])
        for i, tensor in enumerate("KV")
        for layer, row in enumerate(per_head["cos_sim"][i])
        for head, cosine_of_head in enumerate(row)
    ]
    constant = [name for name, _, r2 in heads if r2 is None]
    found = []
    if constant:
        verb = "does" if len(constant) == 1 else "do"
        found.append(
            f"{len(constant)} of {len(heads)} heads of the student {verb} not vary and cannot be scored: "
            f"{_some(constant)}"
        )
    if len(constant) == len(heads):
        return [f"{found[0]}; no alignment metric has a value"]
    if collapsed(metrics["cos_sim"], metrics["r2"]):
        found.append(
            f"collapse: raw cosine {metrics['cos_sim']:.3f} with r2 {metrics['r2']:.3f}; predicting a constant scores "
            f"{metrics['cos_sim_constant']:.3f}"
        )
    elif fallen := [name for name, cos_sim, r2 in heads if collapsed(cos_sim, r2)]:
        noun = "head" if len(fallen) == 1 else "heads"
        found.append(
            f"collapse of {len(fallen)} {noun} of {len(heads)}, with a raw cosine above {COLLAPSE[0]} and r2 below "
            f"{COLLAPSE[1]}: {_some(fallen)}"
        )
    if not 0.1 <= metrics["mag_ratio"] <= 10:
        found.append(f"magnitude ratio {metrics['mag_ratio']:.3g} is outside 0.1 to 10")
    return found


def is_inert(arm: Mapping[str, Any], alignment: Mapping[str, Any] | None) -> bool:
    """Whether a distilled student's KV does not follow its projected teacher's although it was to.

    Parameters
    ----------
    arm
        Its configuration. One that trains on another example's KV is a control, and is not judged.
    alignment
        On held-out examples after distillation; None without a projector.
    """
    if not alignment or arm.get("aligner") is None or arm.get("teacher_kv") == "shuffled":
        return False
    return inert(alignment.get("cos_sim_centered"), alignment.get("r2"))


def inert_sentence(arm: Mapping[str, Any], alignment: Mapping[str, Any], control: str = "") -> str:
    """Why the KV loss counts as inert, and what to change, the most likely cause first.

    `control` is what else says so: that the cross entropy is that of the arm without a KV loss.
    """
    numbers = f"centred cosine {alignment['cos_sim_centered']:.3f}, r2 {alignment['r2']:.3f}"
    raw, floor = alignment.get("cos_sim"), alignment.get("cos_sim_constant")
    if raw is not None and floor is not None:
        numbers += f", raw cosine {raw:.3f} where a constant scores {floor:.3f}"
    return (
        f"{INERT_BEGINS}: on held-out examples the student's KV follows the teacher's no more than by chance "
        f"({numbers}){control}; to give it an effect, {', or '.join(_changes(arm))}"
    )


def _changes(arm: Mapping[str, Any]) -> list[str]:
    weight, until = arm.get("kv_weight", 1.0), arm.get("kv_until", 1.0)
    changes = [f"raise kv_weight (it is {weight:g})" if weight else "set kv_weight above 0 (it is 0)"]
    if until < 1:
        changes.append(f"raise kv_until (the loss ended after {100 * until:g}% of the steps)")
    if not arm.get("pretrain_projector"):
        changes.append("fit the projector first (pretrain_projector: true)")
    elif not arm.get("train_projector"):
        changes.append("train the projector jointly (train_projector: true)")
    kind = arm["aligner"]["kind"]
    other = "another mlp_ratio, or kind: structured" if kind == "flat" else "kind: flat, which has more parameters"
    changes.append(f"take an aligner of another size ({other})")
    return [*changes, "train for more steps or with a higher student_lr"]


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
