"""Who wrote the answers that are trained on: the author of the data, or the teacher."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kava.config.base import Positive, Seed, Settings


class GoldAnswers(Settings):
    """The answers of the data."""

    kind: Literal["gold"] = "gold"


class TeacherAnswers(Settings):
    """Answers that the teacher writes to the training questions, so that its KV is of its own words.

    Validation and test rows keep the gold answers: alignment and likelihood are measured on one text for all runs.
    """

    kind: Literal["teacher"] = "teacher"
    samples: Positive = Field(1, description="answers to each question; several need a temperature")
    temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest token each time; else tokens are drawn")
    top_p: float = Field(
        1.0, gt=0, le=1, description="of drawn tokens: from the likeliest ones that have this probability together"
    )
    seed: Seed = Field(0, description="of drawn tokens, with the question and the sample, whatever the batch")
    max_new_tokens: Positive = Field(
        320, description="longest answer in tokens; one that is cut there before its result is not kept"
    )
    batch_size: Positive = Field(
        16, description="answers per generate call; padding rounds, so it is part of what is written"
    )
    shard_questions: Positive = Field(
        64, description="questions per file: what a kill loses at most; answers are put into batches within one"
    )
    keep: Literal["correct", "all"] = Field(
        "correct", description="answers that are kept: those with the gold result, or all that came to an end"
    )
    otherwise: Literal["gold", "drop"] = Field(
        "gold", description="a question of which no answer is kept: trained on with its gold answer, or not at all"
    )

    @model_validator(mode="after")
    def _drawing_needs_a_temperature(self) -> Self:
        if self.temperature > 0:
            return self
        drawn = {"samples": self.samples, "top_p": self.top_p, "seed": self.seed}
        for name, value in drawn.items():
            if value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {value} and temperature 0: answers are then not drawn, so that all to one question "
                    f"would be equal; set temperature: 0.7, or remove {name}"
                )
        return self


def _with_its_kind(given: Any) -> Any:
    """`teacher` for `{kind: teacher}`; settings alone are the teacher's, since gold answers have none."""
    if isinstance(given, str):
        return {"kind": given}
    return {"kind": "teacher"} | given if isinstance(given, dict) else given


Answers = Annotated[
    GoldAnswers | TeacherAnswers,
    Field(discriminator="kind"),
    BeforeValidator(_with_its_kind, json_schema_input_type=GoldAnswers | TeacherAnswers | Literal["gold", "teacher"]),
]
