"""Which arms a benchmark can train both from the store and with the teacher online."""

from kava.config.schema import Config
from kava.errors import UserError


def choose_arm(config: Config, name: str | None) -> str:
    """The arm that was asked for, or the first one that can be compared.

    Raises
    ------
    UserError
        There is no such arm, or the online way cannot do what it does.
    """
    if name is None:
        able = [arm for arm in config.arms if why_not(config, arm) is None]
        if not able:
            reasons = "; ".join(f"{arm} {why_not(config, arm)}" for arm in config.arms)
            raise UserError(f"no arm compares whole teacher KV with its own example: {reasons}")
        return able[0]
    if name not in config.arms:
        raise UserError(f"--arm {name}: no such arm; arms are: {', '.join(config.arms)}")
    if reason := why_not(config, name):
        raise UserError(f"--arm {name}: the arm {reason}; choose another")
    return name


def why_not(config: Config, name: str) -> str | None:
    """What keeps the online way from giving an arm what the store gives; None if nothing does."""
    arm = config.arms[name]
    if (arm.aligner is None or arm.kv_weight == 0) and not arm.auxiliary.cka:
        return "compares no KV, and needs no teacher while it trains"
    if arm.teacher_kv != "matched":
        return "reads another example's KV; it costs what the arm with its own does"
    if config.student_reasoning != "full":
        return f"lays KV onto other tokens (student_reasoning: {config.student_reasoning})"
    for where, select in (("kv.select", config.kv.select), ("select", arm.select)):
        if select is not None and select.kind != "full":
            return f"compares some tokens only ({where}: {select.kind})"
    stored = [name for name, settings in arm.auxiliary if settings and settings.needs]
    if arm.aligner is not None and arm.loss.weights == "importance":
        stored.append("importance")
    if stored:
        return f"reads more of the teacher than its KV ({', '.join(stored)})"
    return None
