"""What a run is: the pydantic models of `config.yaml`, with every default and its reason.

The JSON schema (`workflow/schemas/config.schema.json`) and the table of settings (`docs/configuration.md`) are
generated from these models by `kava config --write-docs`; a test fails when they drift.
"""

import os
from difflib import get_close_matches
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error that names the nearest right one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    close = get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f"did you mean {close[0]!r}? " if close else ""
                    raise ValueError(f"unknown key {key!r}; {hint}allowed: {', '.join(cls.model_fields)}")
        return data


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


class FullSelection(Settings):
    """Keep the KV of every token."""

    kind: Literal["full"] = "full"


class BudgetSelection(Settings):
    """Keep at most `budget` tokens; an example with fewer candidates keeps them all."""

    budget: Positive = Field(64, description="tokens kept per example (with scope head: per layer and KV head)")
    candidates: Literal["reasoning", "all"] = Field(
        "reasoning", description="tokens that may be kept; reasoning is KaVa's own form"
    )


class RightCropSelection(BudgetSelection):
    """Keep the last candidates."""

    kind: Literal["right_crop"] = "right_crop"


class UniformSelection(BudgetSelection):
    """Keep candidates at even distances, both ends included: a control."""

    kind: Literal["uniform"] = "uniform"


class ScopedSelection(BudgetSelection):
    scope: Literal["example", "head"] = Field(
        "example", description="one set of positions for all layers and heads, or a set for each layer and KV head"
    )


class RandomSelection(ScopedSelection):
    """Keep candidates drawn blindly: the control that a scored selection has to beat."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, description="seed of the draw, beside the example's index")


class RkvSelection(ScopedSelection):
    """R-KV as KaVa scores it (arXiv 2510.02312): attention from the answer, and keys unlike the others."""

    kind: Literal["rkv"] = "rkv"
    lam: float = Field(0.1, ge=0, le=1, description="weight of importance; 1 − lam is that of low redundancy")


class RkvWindowSelection(ScopedSelection):
    """R-KV as its authors' repository computes it (arXiv 2505.24133): the last candidates observe, and are kept."""

    kind: Literal["rkv_window"] = "rkv_window"
    lam: float = Field(0.07, ge=0, le=1, description="weight of importance; 1 − lam is that of low redundancy")
    window: Positive = Field(8, description="last candidates, whose attention is the importance; always kept")
    kernel: Positive = Field(7, description="neighbours that share the largest importance among them; odd")
    threshold: float = Field(0.5, ge=0, le=1, description="cosine above which two keys are duplicates")

    @model_validator(mode="after")
    def _check_window_and_kernel(self) -> Self:
        if self.budget <= self.window:
            raise ValueError(
                f"budget={self.budget} leaves nothing to select beside the window={self.window}, which is always kept; "
                "raise the budget or shorten the window"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} has no middle; choose an odd number, such as {self.kernel + 1}")
        return self


Selection = Annotated[
    FullSelection | RightCropSelection | RkvSelection | RkvWindowSelection | UniformSelection | RandomSelection,
    Field(discriminator="kind"),
]


class Bf16Codec(Settings):
    """Lossless: the 16 bits of bfloat16."""

    kind: Literal["bf16"] = "bf16"


class Int8Codec(Settings):
    """8 bits, asymmetric, one scale and minimum per channel and 64 tokens."""

    kind: Literal["int8"] = "int8"


class Int4Codec(Settings):
    """4 bits, asymmetric: keys per channel and 64 tokens, values per token and 64 channels."""

    kind: Literal["int4"] = "int4"


class TransformCodec(Settings):
    """A few per cent of bf16: predicted from the token id, rotated to principal components, bits where they pay."""

    kind: Literal["transform"] = "transform"
    target_cos: float | None = Field(
        None, gt=0, lt=1, description="mean centred cosine that each layer and head reaches; 0.99 if neither is given"
    )
    target_ratio: float | None = Field(None, gt=0, lt=1, description="or: size over raw bf16, parameters included")
    calibration_tokens: Annotated[int, Field(ge=1024)] = Field(
        16384, description="tokens of the training split that the parameters are learnt from"
    )
    first_tokens: int = Field(4, ge=0, le=64, description="tokens at the start of each example that are kept finer")
    fine_answers: bool = Field(False, description="keep answer tokens finer too")

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, data: Any) -> Any:
        if isinstance(data, dict):
            given = {name: data[name] for name in ("target_cos", "target_ratio") if data.get(name) is not None}
            if len(given) == 2:
                raise ValueError(f"{given} are two targets; keep one of them")
            return data if given else data | {"target_cos": 0.99}
        return data


Codec = Annotated[Bf16Codec | Int8Codec | Int4Codec | TransformCodec, Field(discriminator="kind")]


class ImportanceSettings(Settings):
    candidates: Literal["reasoning", "all"] = Field("reasoning", description="tokens that are scored")
    scope: Literal["example", "head"] = Field("example", description="one score per token, or per layer and KV head")


class RkvImportance(ImportanceSettings):
    """Scores of `select: {kind: rkv}`."""

    kind: Literal["rkv"] = "rkv"


class RkvWindowImportance(ImportanceSettings):
    """Scores of `select: {kind: rkv_window}`."""

    kind: Literal["rkv_window"] = "rkv_window"
    window: Positive = 8
    kernel: Positive = 7
    threshold: float = Field(0.5, ge=0, le=1)


Importance = Annotated[RkvImportance | RkvWindowImportance, Field(discriminator="kind")]


class Signals(Settings):
    """What else of the teacher goes into the store."""

    importance: Importance | None = Field(
        None, description="scores of tokens, so that a selection can be made on reading a full store"
    )
    hidden_states: bool = Field(False, description="of all layers at the last token before the answer")
    topk_logits: int = Field(0, ge=0, description="largest log-probabilities kept per answer token; 0: none")


class KvStore(Settings):
    keys: Literal["pre_rope", "post_rope"] = Field("pre_rope", description="store keys before or after RoPE")
    select: Selection = Field(FullSelection(), description="which tokens' KV is kept")
    codec: Codec = Field(Int8Codec(), description="how KV is compressed")
    signals: Signals = Signals()
    shard_tokens: Annotated[int, Field(gt=0, multiple_of=64)] = Field(
        8192, description="tokens per shard: the unit of writing and of resume"
    )
    batch_tokens: Positive = Field(4096, description="padded tokens per teacher forward")


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
        for pair in self.comparisons or []:
            for arm in pair:
                if arm not in self.arms:
                    raise ValueError(f"comparisons name the arm {arm!r}; arms are: {', '.join(self.arms)}")
        return self

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
