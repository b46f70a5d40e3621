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
from kava.config.arms import Arm, FlatAligner
from kava.config.kv import KvStore
from kava.config.models import Lora, ModelSettings, Student, Teacher
from kava.config.training import ClosedForm, Distill, Pretrain
from kava.files import canonical_json
from kava.models.capture import geometry
from kava.models.load_streamed import STREAMED
from kava.plan.geometry import read_geometry
from kava.plan.memory import StageMemory, of_forward, of_training, state_bytes
from kava.plan.resident import forward_parts, loaded_bytes, which
from kava.plan.streamed import Placement, streamed_parts
from kava.plan.trace import StepSettings, Traced, trace_training
from kava.store.shard import ENCODE_TOKENS
from kava.tasks.base import Lengths
from kava.training.prefetch import AHEAD
from kava.training.signals.base import TeacherShape

# fp32 copies of a block of keys (or values) that a codec holds while it encodes: widened, grouped, shifted, scaled,
# rounded and clamped.
ENCODING_COPIES = 6


class Need(Protocol):
    """A stage whose memory is planned."""

    def memory(self) -> StageMemory:
        """Bytes at its peak."""

    def fixes(self) -> Iterator[tuple[str, "Need"]]:
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
    """One forward of the teacher over `kv.batch_tokens` tokens, and the encoding of what it gave.

    Of a teacher whose placement is `auto`, that of one in memory; see `settle`.
    """

    teacher: Teacher
    tokens: int
    kv: KvStore

    def memory(self) -> StageMemory:
        config, dtype, kv = read_geometry(self.teacher), self.teacher.dtype, self.kv
        encoding = ENCODING_COPIES * ENCODE_TOKENS * geometry(config).channels * 4
        if self.streamed:
            hidden = kv.signals.hidden_states or kv.signals.token_hidden_states is not None
            head, wave = kv.signals.topk_logits is not None, max(self.teacher.wave_tokens, kv.shard_tokens)
            rows = max(1, kv.batch_tokens // self.tokens)
            parts = streamed_parts(self.teacher, rows, self.tokens, kv.keys, head, wave, hidden)
            return of_forward(parts | {"temporary": parts["temporary"] + encoding})
        rows = max(1, kv.batch_tokens // self.tokens)
        blocks = len(kv.signals.token_hidden_states or [])
        wanted = kv.keys, kv.signals.hidden_states, blocks
        traced = forward_parts(which(self.teacher), dtype, rows, self.tokens, *wanted)
        weights, dequantised = loaded_bytes(self.teacher, dtype, rows * self.tokens)
        parts = {name: count for name, count in traced.items() if name != "weights"}
        return of_forward(parts | {"weights": weights, "temporary": dequantised + encoding})

    @property
    def streamed(self) -> bool:
        """Whether the weights come from the disk."""
        return self.teacher.placement == "streamed"

    def at(self, placement: Placement) -> Self:
        """With the teacher placed there."""
        return replace(self, teacher=self.teacher.model_copy(update={"placement": placement}))

    def fixes(self) -> Iterator[tuple[str, Self]]:
        half = self.kv.batch_tokens // 2
        if half >= self.tokens:
            yield f"kv.batch_tokens: {half}", replace(self, kv=self.kv.model_copy(update={"batch_tokens": half}))
        if self.streamed:
            half = self.teacher.wave_tokens // 2
            if half >= self.kv.shard_tokens:
                smaller = self.teacher.model_copy(update={"wave_tokens": half})
                yield f"teacher.wave_tokens: {half}", replace(self, teacher=smaller)
        elif read_geometry(self.teacher).model_type in STREAMED:
            yield "teacher.placement: streamed", self.at("streamed")
        settings = self.teacher.model_dump()
        for name, value in (("dtype", "bfloat16"), ("quantization", "nf4")):
            if settings[name] != value:
                yield f"teacher.{name}: {value}", replace(self, teacher=self.teacher.model_copy(update={name: value}))


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
