"""How a phase changes the student before it trains it; the one place that knows of settings which may be missing."""

from typing import Any

# Settings of the student's training that this version of the schema may or may not have.
CHECKPOINTING = "gradient_checkpointing"


def prepared(student: Any, settings: dict[str, Any], trained: bool) -> Any:
    """The student as `run_phase` hands it to `DistillationModel`.

    Parameters
    ----------
    student
        As it was loaded.
    settings
        Of the phase, and `lora` of the student, as JSON values.
    trained
        False while the projector is pretrained.
    """
    if trained and settings.get(CHECKPOINTING):
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return student
