"""Whether a store will hold what the losses of an arm read: a lack would be found out hours after extraction."""

from kava.config.arms import Arm
from kava.config.kv import Signals


def check_signals(where: str, arm: Arm, signals: Signals, student_reasoning: str) -> None:
    """Raise `ValueError` for a loss whose signal is not stored, or is of tokens that the student does not read.

    Parameters
    ----------
    where
        Name of the arm's setting, `arms.<name>`.
    arm, signals, student_reasoning
        Of one configuration.
    """
    stored = dict(signals)
    for loss, settings in arm.auxiliary:
        if settings and settings.needs and not stored[settings.needs.partition(":")[0]]:
            raise ValueError(
                f"{where}.auxiliary.{loss} reads what the store does not hold; set kv.signals.{settings.needs}"
            )
    if arm.auxiliary.logit_kd and "reasoning" in signals.topk_segments and student_reasoning != "full":
        raise ValueError(
            f"{where}.auxiliary.logit_kd compares logits at every token of the reasoning, which student_reasoning: "
            f"{student_reasoning} takes from the student; set kv.signals.topk_segments: [answer]"
        )
    if hidden := arm.auxiliary.hidden:
        if missing := sorted({*(hidden.layers or [])} - {*(signals.token_hidden_states or [])}):
            raise ValueError(
                f"{where}.auxiliary.hidden.layers names the teacher's layers {missing}, which "
                f"kv.signals.token_hidden_states: {signals.token_hidden_states} does not store; add them to it"
            )
        if student_reasoning != "full":
            raise ValueError(
                f"{where}.auxiliary.hidden compares token by token, and student_reasoning: {student_reasoning} takes "
                "tokens from the student; set student_reasoning: full"
            )
    if arm.aligner and arm.loss.weights == "importance":
        if signals.importance is None or signals.importance.scope != "example":
            raise ValueError(
                f"{where}.loss.weights: importance needs kv.signals.importance: {{kind: rkv, scope: example}}"
            )
        if student_reasoning != "full":
            raise ValueError(f"{where}.loss.weights: importance is not defined for student_reasoning: equations")
