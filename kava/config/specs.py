"""What each stage depends on: its spec. The canonical JSON of a spec is all that can be a reason to run again.

Content keys of token sets, stores, reference evaluations and benchmarks are parts of it.
"""

from typing import Any, Final, Literal, Self

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, field_serializer, model_serializer

from kava.config.answers import TeacherAnswers
from kava.config.arms import Arm
from kava.config.base import Name, Settings
from kava.config.kv import Codec, KvStore
from kava.config.models import Lora
from kava.config.schema import Chat, Config, Evaluation
from kava.config.training import ClosedForm, Distill, Pretrain, Pretraining

# What a model, tokenizer or data set is: a revision, or hashes of files.
Identity = dict[str, JsonValue]


def left_out() -> Any:
    """A field that came after keys were made: where there is none, a key does not speak of it."""
    return Field(None, exclude_if=lambda value: value is None)


class DataIdentity(Settings):
    """What rows depend on; a store does not depend on the test questions, and its key has none."""

    source: Identity
    train: Identity
    test: Identity | None = left_out()


class WriteKey(Settings):
    """What the answers that the teacher writes depend on."""

    format_version: int
    teacher: Identity
    data: DataIdentity
    template: str
    chat: Chat | None = left_out()
    answers: TeacherAnswers


class TeacherTokens(Settings):
    """What the teacher's ids and the test questions depend on."""

    format_version: int
    data: DataIdentity
    template: str
    max_length: int
    tokenizer: Identity
    chat: Chat | None = left_out()
    answers: WriteKey | None = left_out()


class TokensKey(TeacherTokens):
    """What a token set depends on."""

    student_reasoning: Literal["full", "equations"]

    def as_the_teacher_reads(self) -> TeacherTokens:
        """Without the setting that changes neither the teacher's ids nor the test questions."""
        return TeacherTokens.model_validate(self.model_dump(exclude={"student_reasoning"}))


class StoreKey(KvStore):
    """What the bytes of a store depend on."""

    format_version: int
    teacher: Identity
    tokens: TeacherTokens
    topk_format: int | None = left_out()


class WriteSpec(Settings):
    key: WriteKey


class TokenizeSpec(Settings):
    key: TokensKey


class ExtractSpec(Settings):
    key: StoreKey


class TeacherReading(Settings):
    """How the teacher reads for a benchmark, as in `KvStore`."""

    keys: Literal["pre_rope", "post_rope"]
    batch_tokens: int


class BenchKey(Settings):
    """What size and fidelity of codecs depend on."""

    format_version: int
    store_format: int
    teacher: Identity
    tokens: TeacherTokens
    read: TeacherReading
    codecs: dict[str, Codec]
    measured_tokens: int
    measured_bytes: int
    rotated_channels: int


class BenchSpec(Settings):
    key: BenchKey


class NoPretraining(Settings):
    """Of an arm whose projector stays as it was drawn: alignment is measured in batches, and nothing is trained."""

    steps: Literal[0] = 0
    batch_size: int
    log_every: int

    @classmethod
    def in_place_of(cls, settings: Pretrain | ClosedForm) -> Self:
        """For an arm that leaves its projector as it was drawn, where others are fitted by these settings."""
        # A closed form logs no steps; the number stands in params that were made before there was one.
        steps = settings if isinstance(settings, Pretrain) else Pretrain()
        return cls(batch_size=settings.batch_size, log_every=steps.log_every)

    def as_phase(self) -> Pretrain:
        """As settings of a phase, which has no steps, and of whose other settings none is of matter."""
        return Pretrain().model_copy(update=dict(self))


class TrainingSpec(Settings):
    name: str
    arm: Arm
    seed: int
    student: Identity
    code: str


class PretrainSpec(TrainingSpec):
    pretrain: Pretraining | NoPretraining

    @property
    def settings(self) -> Pretrain | ClosedForm | NoPretraining:
        """Of the phase."""
        return self.pretrain

    @field_serializer("pretrain")
    def _without_how(self, settings: Settings) -> dict[str, Any]:
        return settings.model_dump(exclude=settings.how())


class DistillSpec(TrainingSpec):
    distill: Distill
    export_dtype: Literal["float32", "bfloat16"]
    lora: Lora | None
    at_steps: list[int] | None = left_out()

    @property
    def settings(self) -> Distill:
        """Of the phase."""
        return self.distill

    @field_serializer("distill")
    def _without_how(self, settings: Settings) -> dict[str, Any]:
        return settings.model_dump(exclude=settings.how())


class MeasureSpec(Settings):
    metrics: str


class EvaluationKey(Settings):
    """What an evaluation depends on besides a trained student, which is an input.

    Attributes
    ----------
    scores
        Version of what is measured.
    model, tokens
        Of a reference, and what it is asked.
    teacher
        Of another reference than the teacher: hash of the key of the teacher's own, whose likeliest tokens it is
        compared with.
    student_reasoning
        The same: what its gold answers are, as the students read them; left out where they are whole.
    validation
        Of a reference: whether the validation questions are scored, too, since students are at some of their steps.
    """

    scores: int
    evaluation: Evaluation
    model: Identity | None = left_out()
    tokens: TeacherTokens | None = left_out()
    teacher: str | None = left_out()
    student_reasoning: Literal["equations"] | None = left_out()
    validation: Literal[True] | None = left_out()


class EvaluateSpec(Settings):
    key: EvaluationKey
    reference: Name | None = left_out()


class ReportSpec(Config):
    """The configuration with its declared comparisons, but for where and beside what jobs run."""

    controls: list[str]

    @model_serializer(mode="wrap")
    def _without_how(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in self.how()}


SPECS: Final[dict[str, type[Settings]]] = {
    "write": WriteSpec,
    "tokenize": TokenizeSpec,
    "extract": ExtractSpec,
    "bench_store": BenchSpec,
    "pretrain": PretrainSpec,
    "distill": DistillSpec,
    "measure": MeasureSpec,
    "evaluate": EvaluateSpec,
    "report": ReportSpec,
}
