"""One run of one stage: what it depends on, what it reads and where it writes; and how it is run."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from kava.config.base import Name, Settings
from kava.config.data import Data
from kava.config.models import ModelSettings, Student, Teacher
from kava.config.schema import Config, Evaluation, Tracker
from kava.config.specs import SPECS, DistillSpec, NoPretraining, PretrainSpec
from kava.config.training import ClosedForm, Distill, Pretrain, Pretraining
from kava.files import canonical_json

S = TypeVar("S", bound=Settings, covariant=True)

# Stage → the module whose `run` does its work; by name, since settings import nothing that computes.
BODIES: Final = {
    "write": "kava.evaluation.write",
    "tokenize": "kava.data.tokenize",
    "extract": "kava.teacher.extract",
    "bench_store": "kava.bench.bench_store",
    "pretrain": "kava.training.pretrain",
    "distill": "kava.training.distill",
    "measure": "kava.training.measure",
    "evaluate": "kava.evaluation.evaluate",
    "report": "kava.report.write",
}


@dataclass(frozen=True)
class Job(Generic[S]):
    """One run of one stage.

    Attributes
    ----------
    stage
        Name of a stage, of which there is a module in `kava.stages`.
    spec
        Everything the result depends on; a change of it is a reason to run again.
    inputs
        Option name → file made by an earlier stage.
    output
        The file that is written last and atomically: the manifest, or the report.
    """

    stage: str
    spec: S
    output: Path
    inputs: dict[str, Path] = field(default_factory=dict)

    @property
    def params(self) -> str:
        """The spec as one canonical JSON string, for Snakemake's `params`."""
        return canonical_json(self.spec.model_dump())

    def body(self) -> "Body":
        """The function that does the work, imported here and not before."""
        body: Body = import_module(BODIES[self.stage]).run
        return body


class Runtime(Settings):
    """What changes how a stage runs, or where it finds what its spec names by content, and not what it makes.

    It never is a reason to run again, so it reaches stages through the environment and not through `params`: rules
    that are read through `ancient()` would otherwise run alone, and what depends on them would be left as it is.

    Attributes
    ----------
    device, tracker, vram_budget_gib
        As configured.
    teacher, student, references, data
        Settings with the places where models and data lie.
    pretrain, distill
        Of which those count that are marked `How`: checkpoints on disk and of activations, compiled layers.
    evaluation
        As configured, for stages that look ahead; what an evaluation does stands in its spec.
    """

    device: Literal["auto", "cpu", "cuda"]
    tracker: Tracker
    teacher: Teacher
    student: Student
    references: dict[Name, ModelSettings]
    data: Data
    pretrain: Pretraining
    distill: Distill
    vram_budget_gib: float
    evaluation: Evaluation

    @classmethod
    def of(cls, config: Config) -> "Runtime":
        """As a configuration says."""
        return cls(**{name: getattr(config, name) for name in cls.model_fields})

    def reference(self, role: str) -> ModelSettings:
        """As `Config.reference`."""
        return {"teacher": self.teacher, "student_base": self.student, **self.references}[role]

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Settings of the teacher, of the student before distillation and of the data, for a model card."""
        return self.model_dump(include={"teacher", "student", "data"})

    def settings(self, job: Job[PretrainSpec] | Job[DistillSpec]) -> Pretrain | ClosedForm | Distill:
        """Of a phase of training: those of the spec, and how they are carried out here."""
        own, here = job.spec.settings, self.pretrain if job.stage == "pretrain" else self.distill
        if isinstance(own, NoPretraining):
            return own.as_phase()
        return own.model_copy(update=here.model_dump(include=here.how()))


Body = Callable[[Job[Any], Runtime], None]


def for_another_process(job: Job[Settings], runtime: Runtime) -> str:
    """A job and how to run it as JSON; `from_another_process` reads it."""
    return json.dumps(
        {"job": asdict(job) | {"spec": job.spec.model_dump()}, "runtime": runtime.model_dump()}, default=str
    )


def from_another_process(text: str) -> tuple[Job[Any], Runtime]:
    """What `for_another_process` wrote."""
    given = json.loads(text)
    job = given["job"]
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    spec = SPECS[job["stage"]].model_validate(job["spec"])
    return Job(job["stage"], spec, Path(job["output"]), inputs), Runtime.model_validate(given["runtime"])


def processes(job: Job[Settings]) -> int:
    """In how many processes a job runs: several only in training, and only where there are steps."""
    settings = job.spec.settings if isinstance(job.spec, PretrainSpec | DistillSpec) else NoPretraining
    return settings.num_processes if isinstance(settings, Pretrain | Distill) else 1
