"""Settings of the KV store: which tokens are kept, how they are coded, and what else goes in."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kava.config.base import Layer, Positive, Settings


class FullSelection(Settings):
    """Keep the KV of every token."""

    kind: Literal["full"] = "full"


class Candidates(Settings):
    candidates: Literal["reasoning", "all"] = Field(
        "reasoning", description="tokens that may be kept, and are scored; reasoning is KaVa's own form"
    )


class Scoped(Candidates):
    scope: Literal["example", "head"] = Field(
        "example", description="one set of positions for all layers and heads, or a set for each layer and KV head"
    )


class WindowScores(Scoped):
    window: Positive = Field(8, description="last candidates, whose attention is the importance; always kept")
    kernel: Positive = Field(7, description="neighbours that share the largest importance among them; odd")
    threshold: float = Field(0.5, ge=0, le=1, description="cosine above which two keys are duplicates")


class RkvImportance(Scoped):
    """Scores of `select: {kind: rkv}`."""

    kind: Literal["rkv"] = "rkv"


class RkvWindowImportance(WindowScores):
    """Scores of `select: {kind: rkv_window}`."""

    kind: Literal["rkv_window"] = "rkv_window"


Importance = Annotated[RkvImportance | RkvWindowImportance, Field(discriminator="kind")]


class BudgetSelection(Candidates):
    """Keep at most `budget` tokens; an example with fewer candidates keeps them all."""

    budget: Positive = Field(64, description="tokens kept per example (with scope head: per layer and KV head)")


class RightCropSelection(BudgetSelection):
    """Keep the last candidates."""

    kind: Literal["right_crop"] = "right_crop"


class UniformSelection(BudgetSelection):
    """Keep candidates at even distances, both ends included: a control."""

    kind: Literal["uniform"] = "uniform"


class ScopedSelection(BudgetSelection, Scoped):
    pass


class RandomSelection(ScopedSelection):
    """Keep candidates drawn blindly: the control that a scored selection has to beat."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, description="seed of the draw, beside the example's index")


class RkvSelection(ScopedSelection):
    """R-KV as KaVa scores it (arXiv 2510.02312): attention from the answer, and keys unlike the others."""

    kind: Literal["rkv"] = "rkv"
    lam: float = Field(0.1, ge=0, le=1, description="weight of importance; 1 − lam is that of low redundancy")

    @property
    def scores(self) -> RkvImportance:
        """What it selects by."""
        return RkvImportance(candidates=self.candidates, scope=self.scope)


class RkvWindowSelection(ScopedSelection, WindowScores):
    """R-KV as its authors' repository computes it (arXiv 2505.24133): the last candidates observe, and are kept."""

    kind: Literal["rkv_window"] = "rkv_window"
    lam: float = Field(0.07, ge=0, le=1, description="weight of importance; 1 − lam is that of low redundancy")

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

    @property
    def scores(self) -> RkvWindowImportance:
        """What it selects by."""
        return RkvWindowImportance(**self.model_dump(include=set(WindowScores.model_fields)))


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
        None,
        gt=0,
        lt=1,
        description="mean centred cosine that each head reaches on held-out tokens; default 0.99",
    )
    target_ratio: float | None = Field(None, gt=0, lt=1, description="or: size of the whole store over raw bf16")
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


class Signals(Settings):
    """What else of the teacher goes into the store."""

    importance: Importance | None = Field(
        None, description="scores of tokens, so that a selection can be made on reading a full store"
    )
    hidden_states: bool = Field(False, description="of all layers at the last token before the answer")
    token_hidden_states: list[Layer] | None = Field(
        None,
        min_length=1,
        description="of every token behind these teacher layers, from 0, as bf16: [0, 3] are two vectors per token",
        exclude_if=lambda value: value is None,
    )
    topk_logits: int = Field(
        0, ge=0, le=1024, description="largest log-probabilities kept per token of topk_segments; 0: none"
    )
    topk_segments: list[Literal["reasoning", "answer"]] = Field(
        ["answer"],
        min_length=1,
        description="tokens whose logits are kept; [reasoning, answer] are all with a label",
        exclude_if=lambda value: value == ["answer"],
    )

    @field_validator("token_hidden_states")
    @classmethod
    def _layers_in_order(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and layers != sorted(set(layers)):
            raise ValueError(f"token_hidden_states {layers} must name layers in rising order, each once")
        return layers

    @field_validator("topk_segments")
    @classmethod
    def _each_once_in_order(cls, segments: list[str]) -> list[str]:
        if segments != sorted(set(segments), reverse=True):
            raise ValueError(f"topk_segments {segments} must be [answer], [reasoning] or [reasoning, answer]")
        return segments


class KvStore(Settings):
    keys: Literal["pre_rope", "post_rope"] = Field("pre_rope", description="store keys before or after RoPE")
    select: Selection = Field(FullSelection(), description="which tokens' KV is kept")
    codec: Codec = Field(Int8Codec(), description="how KV is compressed")
    signals: Signals = Signals()
    shard_tokens: Annotated[int, Field(gt=0, multiple_of=64)] = Field(
        8192, description="tokens per shard: the unit of writing and of resume"
    )
    batch_tokens: Positive = Field(4096, description="padded tokens per teacher forward")

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        if self.codec.kind == "transform" and isinstance(self.select, ScopedSelection) and self.select.scope == "head":
            raise ValueError(
                f"codec transform needs the KV of one token in all heads, and select {self.select.kind} with scope "
                "head keeps other tokens in each; set scope: example, or choose another codec"
            )
        of_tokens = {"importance": self.signals.importance, "token_hidden_states": self.signals.token_hidden_states}
        for name, wanted in of_tokens.items():
            if wanted and self.select.kind != "full":
                raise ValueError(
                    f"signals.{name} is stored for every token, and select {self.select.kind} drops some; set select: "
                    "{kind: full}, and select in the arms"
                )
        return self
