"""What must stand in an experiment record for its report to be made again; a record holds more."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from kava.report.inputs import REFERENCE, generated, is_run
from kava.tasks import task_of
from kava.tasks.metric import ANSWER_NLL

REFERENCES = ("teacher", "student_base")


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Scored(_Model):
    """And, by name, the mean of each metric, with its interval."""

    model: str
    n: int


class _Models(_Model):
    """And, as `reference/<name>`, further models."""

    teacher: _Scored
    student_base: _Scored


class Place(BaseModel):
    """Of `path` and `cache` one is given, in the folder of the record or in the cache."""

    model_config = ConfigDict(extra="forbid")
    path: str | None = None
    cache: str | None = None
    sha256: str

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.path is None) == (self.cache is None):
            raise ValueError("give either path or cache")
        return self


class _Data(_Model):
    kind: str


class _Configuration(_Model):
    experiment: str
    data: _Data
    preset: str
    arms: dict[str, dict[str, Any]]
    seeds: list[int]
    comparisons: list[tuple[str, str]]
    controls: list[str]
    references: dict[str, Any] = {}


class Record(_Model):
    """The record as a whole."""

    date: str
    notes: str
    verdict: str
    report_made_with: dict[str, Any]
    data: Any
    tokenizer: Any
    models: _Models
    questions_sha256: list[str]
    configuration: _Configuration
    files: dict[str, Place]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {*REFERENCES, "tokens", "store", *(f"{REFERENCE}{name}" for name in self.configuration.references)}
        for name in self.files:
            arm, _, rest = name.partition("/seed-") if is_run(name) else (name, "", "")
            seed, _, stage = rest.partition("/")
            configured = arm in self.configuration.arms and seed in map(str, self.configuration.seeds)
            if rest and not configured:
                raise ValueError(f"files has {name}, and configuration has no such run")
            if stage == "evaluation":
                needed.add(f"{name.removesuffix('/evaluation')}/student")
        if lacking := sorted(needed - self.files.keys()):
            raise ValueError(f"files has no {lacking[0]}")
        for model in (self.models.teacher, self.models.student_base):
            task, settings = task_of(self.configuration.data.kind), self.configuration.model_dump()
            own = {*(metric.name for metric in task.metrics)} if generated(settings) else {ANSWER_NLL.name}
            if lacking := sorted(own - (model.model_extra or {}).keys()):
                raise ValueError(f"{model.model} has no {lacking[0]}")
        return self
