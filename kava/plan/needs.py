"""What each stage would need, from settings alone: extraction, a training phase of one arm, evaluation."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol, Self

import torch

from kava.align import make_aligner
from kava.align.base import Solved
from kava.align.layers import settle
from kava.align.least_squares import moment_bytes
from kava.config.answers import TeacherAnswers
from kava.config.arms import Arm, FlatAligner
from kava.config.kv import KvStore
from kava.config.models import Lora, ModelSettings, Student, Teacher
from kava.config.schema import Evaluation
from kava.config.training import ClosedForm, Distill, Pretrain
from kava.evaluation.likelihood import LOGITS_AT_ONCE
from kava.files import canonical_json
from kava.models.capture import geometry
from kava.plan.geometry import read_geometry
from kava.plan.memory import StageMemory, of_forward, of_training, state_bytes
from kava.plan.resident import forward_parts, loaded_bytes, which
from kava.plan.trace import StepSettings, Traced, trace_training
from kava.store.shard import ENCODE_TOKENS
from kava.tasks.base import Lengths, Task
from kava.training.prefetch import AHEAD
from kava.training.signals.base import TeacherShape

# fp32 copies of a block of keys (or values) that a codec holds while it encodes: widened, grouped, shifted, scaled,
# rounded and clamped.
ENCODING_COPIES = 6
# Of a logit in a forward that is scored: a copy in fp32, and its logarithm.
SCORED_BYTES = 4 + 4


class Need(Protocol):
    """A stage whose memory is planned."""

    def memory(self) -> StageMemory:
        """Bytes at its peak."""

    def fixes(self) -> Iterator[tuple[str, Self]]:
        """Settings that would lower it, the least harmful first: as written in the configuration, and the need then."""


@dataclass(frozen=True)
class TrainingNeed:
    """One phase of one arm."""

    stage: str  # `pretrain` or `distill`
    name: str  # of the arm
    student: Student
    teacher: Teacher
    arm: Arm
    settings: Pretrain | ClosedForm | Distill
    tokens: int  # of the longest example
    kv: KvStore
    lengths: Lengths  # of the task's rows

    @property
    def phase(self) -> Pretrain | Distill:
        """As a phase with steps, which one in closed form has none of."""
        return self.settings.as_phase() if isinstance(self.settings, ClosedForm) else self.settings

    def traced(self, step: bool = True) -> Traced:
        """Of one micro-batch, when every loss of the arm counts; arms that differ in schedules share it.

        Without a step it has the parameters alone, and is quick.
        """
        settings, distills = self.phase, isinstance(self.settings, Distill)
        step_settings = StepSettings(
            batch_size=settings.batch_size,
            precision=settings.precision,
            gradient_checkpointing=isinstance(settings, Distill) and settings.gradient_checkpointing,
            lora=self.student.lora if distills else None,
            learns=settings.steps > 0,
        )
        signals = self.kv.signals
        kv: dict[str, Any] = {"codec": self.kv.codec.kind, "keys": self.kv.keys}
        kv |= {"top": signals.topk_logits, "topk_segments": signals.topk_segments}
        kv |= {"token_hidden_states": signals.token_hidden_states or []}
        kv |= {"prompt": self.lengths.shortest_prompt, "answer": self.lengths.longest_answer}
        models = which(self.student), which(self.teacher)
        texts = (each.model_dump_json() for each in (*models, _at_its_dearest(self.arm), step_settings))
        return _traced(self.stage, self.tokens, step, *texts, canonical_json(kv))

    def memory(self) -> StageMemory:
        phase = self.phase
        return of_training(self.traced(), phase.optimizer, AHEAD, phase.num_processes, self._normal_equations())

    def checkpoint(self) -> int:
        """Bytes of one checkpoint: what is trained, in fp32, and its optimizer states."""
        sizes = [size for of_module in self.traced(step=False).trained.values() for size in of_module]
        return 4 * sum(sizes) + state_bytes(self.phase.optimizer, sizes)[0]

    def _normal_equations(self) -> int:
        """Bytes of what a closed form gathers and solves."""
        if not isinstance(self.settings, ClosedForm) or self.arm.aligner is None:
            return 0
        teacher, student = (read_geometry(model) for model in (self.teacher, self.student))
        with torch.device("meta"):
            aligner = make_aligner(settle(self.arm.aligner, student), geometry(teacher), geometry(student))
        assert isinstance(aligner, Solved), f"{self.name}: {aligner.kind} has nothing to solve for"
        return moment_bytes(*aligner.sizes)

    def fixes(self) -> Iterator[tuple[str, Self]]:
        settings, size, stage = self.phase, self.settings.batch_size, self.stage
        if settings.steps == 0:
            if size > 1:
                yield f"{stage}.batch_size: {size // 2}", self._with(batch_size=size // 2)
            return
        if size > 1:
            half = size // 2 if size % 2 == 0 else 1
            accumulation = settings.accumulation * size // half
            setting = f"{stage}.batch_size: {half}, {stage}.accumulation: {accumulation}"
            yield setting, self._with(batch_size=half, accumulation=accumulation)
        if isinstance(settings, Distill) and not settings.gradient_checkpointing:
            yield f"{stage}.gradient_checkpointing: true", self._with(gradient_checkpointing=True)
        if settings.optimizer != "paged_adamw_8bit":
            yield f"{stage}.optimizer: paged_adamw_8bit", self._with(optimizer="paged_adamw_8bit")
        if settings.precision != "bfloat16":
            yield f"{stage}.precision: bfloat16", self._with(precision="bfloat16")
        if isinstance(settings, Distill) and not self.student.lora:
            yield self._adapters()
        yield from self._aligner_fixes()
        shorter = self.tokens * 3 // 4
        yield f"max_length: {shorter} (longer examples are dropped)", replace(self, tokens=shorter)

    def _adapters(self) -> tuple[str, Self]:
        setting, lora = "{rank: 16}", Lora()
        if read_geometry(self.student).model_type == "gpt2":
            setting, lora = "{rank: 16, targets: [c_attn, c_proj, c_fc]}", Lora(targets=["c_attn", "c_proj", "c_fc"])
        return f"student.lora: {setting}", replace(self, student=self.student.model_copy(update={"lora": lora}))

    def _aligner_fixes(self) -> Iterator[tuple[str, Self]]:
        aligner = self.arm.aligner
        if not isinstance(aligner, FlatAligner):
            return
        smaller = {} if aligner.layers == "last" else {"layers": "last"}
        for name, value in (smaller | {"mlp_ratio": aligner.mlp_ratio / 2}).items():
            arm = self.arm.model_copy(update={"aligner": aligner.model_copy(update={name: value})})
            yield f"arms.{self.name}.aligner.{name}: {value}", replace(self, arm=arm)

    def _with(self, **changes: Any) -> Self:
        return replace(self, settings=self.settings.model_copy(update=changes))


@dataclass(frozen=True)
class ExtractionNeed:
    """One forward of the teacher over `kv.batch_tokens` tokens, and the encoding of what it gave."""

    teacher: Teacher
    tokens: int
    kv: KvStore

    def memory(self) -> StageMemory:
        config, dtype, kv = read_geometry(self.teacher), self.teacher.dtype, self.kv
        rows = max(1, kv.batch_tokens // self.tokens)
        blocks = len(kv.signals.token_hidden_states or [])
        wanted = kv.keys, kv.signals.hidden_states, blocks
        traced = forward_parts(which(self.teacher), dtype, rows, self.tokens, *wanted)
        weights, dequantised = loaded_bytes(self.teacher, dtype, rows * self.tokens)
        encoding = ENCODING_COPIES * ENCODE_TOKENS * geometry(config).channels * 4
        parts = {name: count for name, count in traced.items() if name != "weights"}
        return of_forward(parts | {"weights": weights, "temporary": dequantised + encoding})

    def fixes(self) -> Iterator[tuple[str, Self]]:
        half = self.kv.batch_tokens // 2
        if half >= self.tokens:
            yield f"kv.batch_tokens: {half}", replace(self, kv=self.kv.model_copy(update={"batch_tokens": half}))
        settings = self.teacher.model_dump()
        for name, value in (("dtype", "bfloat16"), ("quantization", "nf4")):
            if settings[name] != value:
                yield f"teacher.{name}: {value}", replace(self, teacher=self.teacher.model_copy(update={name: value}))


@dataclass(frozen=True)
class Judged:
    """A model as it is evaluated: `dtype` by its name in torch, and whether a run exports it, and may choose that."""

    source: ModelSettings
    dtype: str
    exported: bool = False

    def loaded(self, tokens: int) -> tuple[int, int]:
        """See `loaded_bytes`."""
        return loaded_bytes(self.source, self.dtype, tokens)

    def forward(self, rows: int, tokens: int) -> dict[str, int]:
        """Parts of the peak of one forward."""
        return forward_parts(which(self.source), self.dtype, rows, tokens, None, False)


def as_it_comes(source: ModelSettings) -> Judged:
    """A model that is not trained, in the dtype of its files."""
    return Judged(source, str(read_geometry(source).dtype or torch.float32).removeprefix("torch."))


@dataclass(frozen=True)
class EvaluationNeed:
    """Greedy answers of one model to a batch of questions."""

    model: Judged
    settings: Evaluation
    prompt: int  # tokens of the longest question
    where: str = "evaluation"  # settings that these are of

    def memory(self) -> StageMemory:
        config, rows = read_geometry(self.model.source), self.settings.batch_size
        width = getattr(torch, self.model.dtype).itemsize
        weights, dequantised = self.model.loaded(rows * self.prompt)
        shape = geometry(config)
        per_token = 2 * shape.channels * width
        # The cache grows by concatenation, a layer at a time: old and new lie beside each other.
        cached = rows * (self.prompt + self.settings.max_new_tokens) * per_token
        traced = self.model.forward(rows, self.prompt)
        parts = {
            "weights": weights,
            "activations": traced["activations"] - rows * self.prompt * per_token,
            "kv cache": cached,
            # In the model's dtype, in fp32, and once more while the largest is sought.
            "logits": rows * config.vocab_size * (width + 8),
            "temporary": dequantised + cached // shape.layers,
        }
        return of_forward(parts)

    def fixes(self) -> Iterator[tuple[str, Self]]:
        half = self.settings.batch_size // 2
        if half:
            settings = self.settings.model_copy(update={"batch_size": half})
            yield f"{self.where}.batch_size: {half}", replace(self, settings=settings)
        if self.model.exported and self.model.dtype == "float32":
            yield "student.export_dtype: bfloat16", replace(self, model=replace(self.model, dtype="bfloat16"))


@dataclass(frozen=True)
class LikelihoodNeed:
    """One forward over a batch of test examples, and their logits."""

    model: Judged
    batch_size: int  # examples at most
    tokens: int  # of the longest

    def memory(self) -> StageMemory:
        config, width = read_geometry(self.model.source), getattr(torch, self.model.dtype).itemsize
        rows = max(1, min(self.batch_size, LOGITS_AT_ONCE // (self.tokens * config.vocab_size)))
        weights, dequantised = self.model.loaded(rows * self.tokens)
        cache = 2 * rows * self.tokens * geometry(config).channels * width  # that forward keeps one, and this one none
        activations = self.model.forward(rows, self.tokens)["activations"] - cache
        logits = rows * self.tokens * config.vocab_size * (width + SCORED_BYTES)
        parts = {"weights": weights, "activations": activations, "logits": logits, "temporary": dequantised}
        return of_forward(parts)

    def fixes(self) -> Iterator[tuple[str, Self]]:
        half = self.batch_size // 2
        if half:
            yield f"evaluation.batch_size: {half}", replace(self, batch_size=half)
        shorter = self.tokens * 3 // 4
        yield f"max_length: {shorter} (longer examples are dropped)", replace(self, tokens=shorter)


def evaluation_of(task: Task, model: Judged, settings: Evaluation, hub: str | None, longest: int) -> Need:
    """Need of the evaluation of one model: of written answers or of scoring the gold ones, whichever takes more.

    Parameters
    ----------
    task
        Of the data.
    model, settings
        Which, and how.
    hub
        Id of the data set, whose longest question may have been measured.
    longest
        `max_length`, which prompts seldom exceed and test examples never do.
    """
    scored = LikelihoodNeed(model, settings.batch_size, longest)
    if task.harness is None or not settings.generate:
        return scored
    written = EvaluationNeed(model, settings, min(longest, task.lengths.longest_prompts.get(hub or "", longest)))
    return written if written.memory().peak >= scored.memory().peak else scored


def writing_of(teacher: Teacher, answers: TeacherAnswers, prompt: int) -> EvaluationNeed:
    """Need of the teacher's answers to training questions, of which the longest has `prompt` tokens."""
    settings = Evaluation(batch_size=answers.batch_size, max_new_tokens=answers.max_new_tokens)
    return EvaluationNeed(Judged(teacher, teacher.dtype), settings, prompt, "data.answers")


def _at_its_dearest(arm: Arm) -> Arm:
    """The arm when all of its losses count; what memory does not depend on is as in every other arm."""
    same = {"pretrain_projector": False, "teacher_kv": "matched", "select": None}
    return arm.at_full_weight(kv_weight=float(arm.kv_weight > 0), **same)


@cache
def _traced(
    stage: str, tokens: int, step: bool, student: str, teacher: str, arm: str, settings: str, kv: str
) -> Traced:
    config = read_geometry(ModelSettings.model_validate_json(teacher))
    side = TeacherShape(geometry(config), config.hidden_size, **json.loads(kv))
    config, of_step = (
        read_geometry(Student.model_validate_json(student)),
        StepSettings.model_validate_json(settings),
    )
    return trace_training(config, side, Arm.model_validate_json(arm), of_step, stage, tokens, step)
