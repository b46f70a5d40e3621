"""What to say of an arm whose KV loss did nothing, and what of its settings to change."""

from collections.abc import Mapping
from typing import Any

from kava.grades import inert

INERT_BEGINS = "inert KV loss"


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
