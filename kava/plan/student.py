"""What a phase does to the student before it trains it, told by its settings: the counterpart of `run_phase`."""

from typing import Any

# A setting of the phase, where the schema has it.
CHECKPOINTING = "gradient_checkpointing"


def prepared(student: Any, settings: dict[str, Any], trained: bool) -> Any:
    """The student as `run_phase` hands it to `DistillationModel`.

    Parameters
    ----------
    student
        As it was loaded.
    settings
        Of the phase, as JSON values.
    trained
        False while the projector is pretrained.
    """
    if trained and settings.get(CHECKPOINTING):
        student.activation_checkpointing_enable({"use_reentrant": False})
    return student
