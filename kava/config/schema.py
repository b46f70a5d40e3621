"""What a run is: the pydantic models of `config.yaml`, with every default and its reason.

The JSON schema (`workflow/schemas/config.schema.json`) and the table of settings (`docs/configuration.md`) are
generated from these models by `kava config --write-docs`; a test fails when they drift.
"""

import os
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kava.config.base import Name, Positive, Rate, Settings
from kava.config.kv import KvStore, RkvSelection, RkvWindowSelection, ScopedSelection, Selection


class ModelSettings(Settings):
    model: str = Field(description="hub id, local directory, or `kava:teacher` / `kava:student` (the demo's)")
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")


class Teacher(ModelSettings):
    quantization: Literal["nf4", "none"] = Field("nf4", description="4-bit NF4 by bitsandbytes, or none")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="compute dtype of the teacher")


class Student(ModelSettings):
    export_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the saved student; trained weights are fp32 whatever this says"
    )


class DemoData(Settings):
    """Word problems in GSM8K's format from a seeded generator."""

    kind: Literal["demo"] = "demo"
    train: Positive = Field(1000, description="training examples")
    validation: Positive = Field(100, description="held-out examples for the alignment metrics")
    test: Positive = Field(500, description="test questions")
    seed: int = Field(0, description="seed of the generator")


class Gsm8kData(Settings):
    """GSM8K (Cobbe et al. 2021, arXiv 2110.14168), or data in its format."""

    kind: Literal["gsm8k"] = "gsm8k"
    path: str = Field("openai/gsm8k", description="hub id, or a directory with train.jsonl and test.jsonl")
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")
    train: Positive | None = Field(None, description="first N training examples; null: all but the held-out ones")
    validation: Positive = Field(128, description="held-out examples, taken from the end of the training split")
    test: Positive | None = Field(None, description="first N test questions; null: all")


Data = Annotated[DemoData | Gsm8kData, Field(discriminator="kind")]


class RatioMap(Settings):
    """Student layer i reads teacher layer round(i · (L_t − 1) / (L_s − 1))."""

    kind: Literal["ratio"] = "ratio"


class FlatAligner(Settings):
    """Elastic bottleneck over all layers and heads concatenated: the structure is given up."""

    kind: Literal["flat"] = "flat"
    mlp_ratio: float = Field(1.0, gt=0, le=8, description="hidden width over input width; recommended 0.5 to 2")
    dropout: float = Field(0.1, ge=0, lt=1, description="recommended 0.05 to 0.15")


class StructuredAligner(Settings):
    """Headwise map projection: layers, heads and dims are mapped one after the other, never flattened."""

    kind: Literal["structured"] = "structured"
    layer_map: RatioMap = Field(RatioMap(), description="which teacher layer each student layer reads")
    mixer_init: Literal["uniform", "random"] = Field("uniform", description="start of the head mixer")
    per_head: bool = Field(False, description="one dim projection per student head instead of a shared one")


Aligner = Annotated[FlatAligner | StructuredAligner, Field(discriminator="kind")]


class LossSettings(Settings):
    center: bool = Field(True, description="remove fixed channel means first; false is the literal raw form")


class MercatorLoss(LossSettings):
    """alpha · (1 − mean cosine) + beta · MSE of log norms."""

    kind: Literal["mercator"] = "mercator"
    alpha: float = Field(1.0, ge=0, description="weight of direction")
    beta: float = Field(0.01, ge=0, description="weight of magnitude; recommended 0 to 0.05")


class MseLoss(LossSettings):
    """Mean squared error."""

    kind: Literal["mse"] = "mse"


Loss = Annotated[MercatorLoss | MseLoss, Field(discriminator="kind")]


class Arm(Settings):
    """One arm of the experiment; arms of one run differ in nothing but what stands here."""

    aligner: Aligner | None = Field(description="teacher geometry → student geometry; null: the SFT control")
    loss: Loss = Field(MercatorLoss(), description="distance between projected teacher KV and student KV")
    kv_weight: float = Field(1.0, ge=0, description="weight of the KV loss beside the cross entropy")
    select: Selection | None = Field(
        None, description="which of the stored tokens are compared, from a store with kv.select: full; null: all"
    )
    teacher_kv: Literal["matched", "shuffled"] = Field(
        "matched", description="shuffled: the KV of another example of like length, a control"
    )


class Optimization(Settings):
    steps: Positive = Field(1000, description="optimizer steps")
    batch_size: Positive = Field(2, description="examples per forward")
    accumulation: Positive = Field(16, description="forwards per optimizer step")
    projector_lr: Rate = Field(1e-3, description="recommended 5e-4 to 2e-3")
    weight_decay: float = Field(0.01, ge=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8-bit states by bitsandbytes"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="autocast dtype; weights are fp32")
    log_every: Positive = 10
    save_every: Positive = Field(200, description="steps between checkpoints; a multiple of log_every")
    keep_checkpoints: Positive = 2

    @model_validator(mode="after")
    def _whole_log_windows(self) -> Self:
        for name in ("steps", "save_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name}={getattr(self, name)} is no multiple of log_every={self.log_every}; a run that ends or "
                    "resumes there would log an average over half a window"
                )
        return self


class Pretrain(Optimization):
    """The projector learns to predict the KV of the frozen student."""

    steps: Positive = 200


class Distill(Optimization):
    """Student and projector learn together."""

    student_lr: Rate = Field(5e-5, description="recommended 1e-5 to 1e-4")


class Evaluation(Settings):
    batch_size: Positive = Field(16, description="questions per generate call")
    max_new_tokens: Positive = Field(256, description="longest answer in tokens")


class Config(Settings):
    """One experiment: a teacher store, arms, seeds, and the report over them."""

    preset: str = Field("demo", description="file of workflow/presets/ that every other key overrides")
    experiment: Name = Field("demo", description="name of the folder results/<experiment>/")
    cache_dir: str = Field(
        default_factory=lambda: os.environ.get("KAVA_CACHE", "results"),
        description="where token sets and teacher stores live; may be shared; default: $KAVA_CACHE, or results",
    )
    extract_jobs: Positive = Field(1, description="extraction jobs that share a store's shards, one GPU each")
    teacher: Teacher
    student: Student
    data: Data
    template: str = Field(
        "Question: {question}\nAnswer: {answer}", description="text of one example; must end in {answer}"
    )
    max_length: Positive = Field(512, description="longer examples are dropped and counted, never cut")
    kv: KvStore = KvStore()
    pretrain: Pretrain = Pretrain()
    distill: Distill = Distill()
    evaluation: Evaluation = Evaluation()
    arms: dict[Name, Arm] = Field(min_length=1, description="name → arm; null removes an arm of the preset")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="every arm is trained once with each seed"
    )
    comparisons: list[tuple[str, str]] | None = Field(
        None, description="declared pairs [a, b]; null: structured against flat, then every KV arm against controls"
    )
    tracker: Literal["none", "tensorboard"] = Field("none", description="metrics.jsonl is written always")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _check_across_fields(self) -> Self:
        fields = [name for _, name, _, _ in Formatter().parse(self.template) if name is not None]
        if not self.template.endswith("{answer}") or sorted(fields) != ["answer", "question"]:
            raise ValueError(
                f"template {self.template!r} must contain {{question}} once and end in {{answer}}, and no other field, "
                "so that the prompt is what stands before the answer"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat a value; each seed is one run of every arm")
        for name, settings in self.arms.items():
            self._check_selection_on_reading(name, settings.select)
        for pair in self.comparisons or []:
            for arm in pair:
                if arm not in self.arms:
                    raise ValueError(f"comparisons name the arm {arm!r}; arms are: {', '.join(self.arms)}")
        return self

    def _check_selection_on_reading(self, arm: str, select: Any) -> None:
        """A store that cannot serve an arm's selection would be found out hours after it was extracted."""
        if select is None or select.kind == "full":
            return
        where = f"arms.{arm}.select"
        if self.kv.select.kind != "full":
            raise ValueError(
                f"{where} chooses from all tokens, and kv.select keeps some; set kv.select: {{kind: full}}"
            )
        if isinstance(select, ScopedSelection) and select.scope == "head":
            raise ValueError(f"{where}.scope is head, and KV is compared token by token; set scope: example")
        if isinstance(select, RkvSelection | RkvWindowSelection):
            wanted = select.model_dump(exclude={"budget", "lam"})
            if self.kv.signals.importance is None or self.kv.signals.importance.model_dump() != wanted:
                raise ValueError(f"{where} needs the scores that kv.signals.importance: {wanted} stores")

    @property
    def controls(self) -> list[str]:
        """Arms that a KV arm has to beat: no KV loss, or the KV of another example."""
        return [n for n, arm in self.arms.items() if arm.aligner is None or arm.teacher_kv == "shuffled"]

    @property
    def declared_comparisons(self) -> list[tuple[str, str]]:
        """Pairs (a, b) that the report tests, the primary one first."""
        if self.comparisons is not None:
            return self.comparisons
        controls = self.controls
        treated = {n: arm.aligner.kind for n, arm in self.arms.items() if arm.aligner and n not in controls}
        structured = [n for n, kind in treated.items() if kind == "structured"]
        flat = [n for n, kind in treated.items() if kind != "structured"]
        return [(a, b) for a in structured for b in flat] + [(a, b) for a in treated for b in controls]
