"""What each stage would need, from settings alone: extraction, a training phase of one arm, evaluation."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol, Self

import torch

from kava.config.arms import Arm
from kava.config.schema import Lora
from kava.evaluation.likelihood import LOGITS_AT_ONCE
from kava.files import canonical_json
from kava.models.capture import geometry
from kava.plan.geometry import read_geometry
from kava.plan.memory import StageMemory, of_forward, of_training, state_bytes
from kava.plan.trace import Counts, Traced, parameter_counts, trace_forward, trace_training
from kava.store.shard import ENCODE_TOKENS
from kava.tasks.base import Lengths, Task
from kava.training.prefetch import AHEAD
from kava.training.signals.base import TeacherShape

# NF4 with double quantisation: 4 bits, one 8-bit maximum per 64 weights, one fp32 one per 256 of those.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
PLAIN_NF4_BITS = 4 + 32 / 64
# What LLM.int8 makes of an input value (fp16, then a code), and of an output value (a 32-bit sum, then fp16).
INT8_STEP_BYTES = 3 + 6
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
    """One phase of one arm; settings as JSON values."""

    stage: str  # `pretrain` or `distill`
    name: str  # of the arm
    student: dict[str, Any]
    teacher: dict[str, Any]
    arm: dict[str, Any]
    settings: dict[str, Any]  # of the phase
    tokens: int  # of the longest example
    kv: dict[str, Any]  # of the store
    lengths: Lengths  # of the task's rows

    def traced(self, step: bool = True) -> Traced:
        """Of one micro-batch, when every loss of the arm counts; arms that differ in schedules share it.

        Without a step it has the parameters alone, and is quick.
        """
        settings = {
            "batch_size": self.settings["batch_size"],
            "precision": self.settings.get("precision", "float32"),
            "gradient_checkpointing": self.settings.get("gradient_checkpointing", False),
            "lora": self.student.get("lora") if self.stage == "distill" else None,
            "learns": self.settings["steps"] > 0,
        }
        kv = {"codec": self.kv["codec"]["kind"], "top": self.kv["signals"]["topk_logits"], "keys": self.kv["keys"]}
        kv |= {"prompt": self.lengths.shortest_prompt, "answer": self.lengths.longest_answer}
        given = (_source(self.student), _source(self.teacher), _at_its_dearest(self.arm), settings, kv)
        return _traced(self.stage, self.tokens, step, *map(canonical_json, given))

    def memory(self) -> StageMemory:
        settings = self.settings
        return of_training(self.traced(), settings.get("optimizer", "adamw"), AHEAD, settings.get("num_processes", 1))

    def checkpoint(self) -> int:
        """Bytes of one checkpoint: what is trained, in fp32, and its optimizer states."""
        sizes = [size for of_module in self.traced(step=False).trained.values() for size in of_module]
        return 4 * sum(sizes) + state_bytes(self.settings.get("optimizer", "adamw"), sizes)[0]

    def fixes(self) -> Iterator[tuple[str, Self]]:
        size, stage = self.settings["batch_size"], self.stage
        if self.settings["steps"] == 0:
            if size > 1:
                yield f"{stage}.batch_size: {size // 2}", self._with(batch_size=size // 2)
            return
        if size > 1:
            half = size // 2 if size % 2 == 0 else 1
            accumulation = self.settings["accumulation"] * size // half
            setting = f"{stage}.batch_size: {half}, {stage}.accumulation: {accumulation}"
            yield setting, self._with(batch_size=half, accumulation=accumulation)
        if self.settings.get("gradient_checkpointing") is False:
            yield f"{stage}.gradient_checkpointing: true", self._with(gradient_checkpointing=True)
        if self.settings["optimizer"] != "paged_adamw_8bit":
            yield f"{stage}.optimizer: paged_adamw_8bit", self._with(optimizer="paged_adamw_8bit")
        if self.settings["precision"] != "bfloat16":
            yield f"{stage}.precision: bfloat16", self._with(precision="bfloat16")
        if stage == "distill" and not self.student.get("lora"):
            yield self._adapters()
        yield from self._aligner_fixes()
        shorter = self.tokens * 3 // 4
        yield f"max_length: {shorter} (longer examples are dropped)", replace(self, tokens=shorter)

    def _adapters(self) -> tuple[str, Self]:
        setting, lora = "{rank: 16}", Lora()
        if read_geometry(self.student).model_type == "gpt2":
            setting, lora = "{rank: 16, targets: [c_attn, c_proj, c_fc]}", Lora(targets=["c_attn", "c_proj", "c_fc"])
        return f"student.lora: {setting}", replace(self, student=self.student | {"lora": lora.model_dump()})

    def _aligner_fixes(self) -> Iterator[tuple[str, Self]]:
        aligner = self.arm["aligner"]
        if not aligner or aligner["kind"] != "flat":
            return
        for name, value in (("layers", "last"), ("mlp_ratio", aligner["mlp_ratio"] / 2)):
            if aligner[name] != value:
                arm = self.arm | {"aligner": aligner | {name: value}}
                yield f"arms.{self.name}.aligner.{name}: {value}", replace(self, arm=arm)

    def _with(self, **changes: Any) -> Self:
        return replace(self, settings=self.settings | changes)


@dataclass(frozen=True)
class ExtractionNeed:
    """One forward of the teacher over `kv.batch_tokens` tokens, and the encoding of what it gave."""

    teacher: dict[str, Any]
    tokens: int
    kv: dict[str, Any]

    def memory(self) -> StageMemory:
        config, dtype = read_geometry(self.teacher), self.teacher["dtype"]
        rows = max(1, self.kv["batch_tokens"] // self.tokens)
        hidden = self.kv["signals"]["hidden_states"]
        traced = _forward(_source_json(self.teacher), dtype, rows, self.tokens, self.kv["keys"], hidden)
        weights, dequantised = _loaded(self.teacher, rows * self.tokens)
        encoding = ENCODING_COPIES * ENCODE_TOKENS * geometry(config).channels * 4
        parts = {name: count for name, count in traced.items() if name != "weights"}
        return of_forward(parts | {"weights": weights, "temporary": dequantised + encoding})

    def fixes(self) -> Iterator[tuple[str, Self]]:
        half = self.kv["batch_tokens"] // 2
        if half >= self.tokens:
            yield f"kv.batch_tokens: {half}", replace(self, kv=self.kv | {"batch_tokens": half})
        for name, value in (("dtype", "bfloat16"), ("quantization", "nf4")):
            if self.teacher[name] != value:
                yield f"teacher.{name}: {value}", replace(self, teacher=self.teacher | {name: value})


@dataclass(frozen=True)
class EvaluationNeed:
    """Greedy answers of one model to a batch of questions."""

    source: dict[str, Any]  # with `dtype` if it is a reference, with `export_dtype` if a student as it is exported
    settings: dict[str, Any]  # `batch_size` and `max_new_tokens`
    prompt: int  # tokens of the longest question

    def memory(self) -> StageMemory:
        config, rows = read_geometry(self.source), self.settings["batch_size"]
        dtype = _dtype(self.source)
        width = getattr(torch, dtype).itemsize
        weights, dequantised = _loaded(self.source, rows * self.prompt)
        shape = geometry(config)
        per_token = 2 * shape.channels * width
        # The cache grows by concatenation, a layer at a time: old and new lie beside each other.
        cached = rows * (self.prompt + self.settings["max_new_tokens"]) * per_token
        traced = _forward(_source_json(self.source), dtype, rows, self.prompt, None, False)
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
        half = self.settings["batch_size"] // 2
        if half:
            yield f"evaluation.batch_size: {half}", replace(self, settings=self.settings | {"batch_size": half})
        if _dtype(self.source) == "float32" and "dtype" not in self.source:
            yield "student.export_dtype: bfloat16", replace(self, source=self.source | {"export_dtype": "bfloat16"})


@dataclass(frozen=True)
class LikelihoodNeed:
    """One forward over a batch of test examples, and their logits.

    Attributes
    ----------
    source
        As of `EvaluationNeed`.
    batch_size, tokens
        Examples at most, and the longest of them.
    """

    source: dict[str, Any]
    batch_size: int
    tokens: int

    def memory(self) -> StageMemory:
        config, dtype = read_geometry(self.source), _dtype(self.source)
        width = getattr(torch, dtype).itemsize
        rows = max(1, min(self.batch_size, LOGITS_AT_ONCE // (self.tokens * config.vocab_size)))
        weights, dequantised = _loaded(self.source, rows * self.tokens)
        traced = _forward(_source_json(self.source), dtype, rows, self.tokens, None, False)
        cache = 2 * rows * self.tokens * geometry(config).channels * width  # that forward keeps one, and this one none
        logits = rows * self.tokens * config.vocab_size * (width + SCORED_BYTES)
        parts = {"weights": weights, "activations": traced["activations"] - cache, "logits": logits}
        return of_forward(parts | {"temporary": dequantised})

    def fixes(self) -> Iterator[tuple[str, Self]]:
        half = self.batch_size // 2
        if half:
            yield f"evaluation.batch_size: {half}", replace(self, batch_size=half)
        shorter = self.tokens * 3 // 4
        yield f"max_length: {shorter} (longer examples are dropped)", replace(self, tokens=shorter)


def evaluation_of(task: Task, source: dict[str, Any], settings: dict[str, Any], hub: str | None, longest: int) -> Need:
    """Need of the evaluation of one model.

    Parameters
    ----------
    task
        Of the data.
    source, settings
        As of `EvaluationNeed`.
    hub
        Id of the data set, whose longest question may have been measured.
    longest
        `max_length`, which prompts seldom exceed and test examples never do.
    """
    if task.harness is None:
        return LikelihoodNeed(source, settings["batch_size"], longest)
    return EvaluationNeed(source, settings, min(longest, task.lengths.longest_prompts.get(hub or "", longest)))


def _dtype(source: dict[str, Any]) -> str:
    dtype: str = source.get("dtype") or source["export_dtype"]
    return dtype


def _source(source: dict[str, Any]) -> dict[str, Any]:
    return {name: source.get(name) for name in ("model", "revision", "trust_remote_code")}


def _source_json(source: dict[str, Any]) -> str:
    return canonical_json(_source(source))


def _at_its_dearest(settings: dict[str, Any]) -> dict[str, Any]:
    """The arm when all of its losses count; what memory does not depend on is as in every other arm."""
    arm = Arm.model_validate(settings)
    same = {"pretrain_projector": False, "teacher_kv": "matched", "select": None}
    return arm.at_full_weight(kv_weight=float(arm.kv_weight > 0), **same).model_dump()


@cache
def _traced(
    stage: str, tokens: int, step: bool, student: str, teacher: str, arm: str, settings: str, kv: str
) -> Traced:
    config = read_geometry(json.loads(teacher))
    side = TeacherShape(geometry(config), config.hidden_size, **json.loads(kv))
    config = read_geometry(json.loads(student))
    return trace_training(config, side, Arm.model_validate_json(arm), json.loads(settings), stage, tokens, step)


@cache
def _forward(source: str, dtype: str, rows: int, tokens: int, keys: str | None, hidden: bool) -> dict[str, int]:
    return trace_forward(read_geometry(json.loads(source)), getattr(torch, dtype), rows, tokens, keys, hidden).parts


def _loaded(source: dict[str, Any], tokens: int) -> tuple[int, int]:
    """Bytes of a model's weights as `kava.models.load` loads them, and those that one of its matrices takes while used.

    NF4 widens the matrix; LLM.int8 narrows its inputs, `tokens` of them, and widens its outputs.
    """
    counts = _counts(_source_json(source))
    width = getattr(torch, _dtype(source)).itemsize
    others = (counts.all - counts.linear) * width
    kind = source.get("quantization")
    if kind == "int8":  # a byte per weight and an fp32 scale per output
        return counts.linear + 4 * counts.rows + others, INT8_STEP_BYTES * tokens * counts.widest
    if kind == "nf4":
        bits = NF4_BITS if source.get("double_quantization", True) else PLAIN_NF4_BITS
        return round(counts.linear * bits / 8) + others, counts.largest * width
    return counts.all * width, 0


@cache
def _counts(source: str) -> Counts:
    return parameter_counts(read_geometry(json.loads(source)))
