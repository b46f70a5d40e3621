"""What one arm of an experiment is: aligner, loss, auxiliary losses, and when and where they apply."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kava.config.auxiliary import Auxiliaries
from kava.config.base import Layer, Positive, Settings, Share
from kava.config.kv import Selection


class RatioMap(Settings):
    """Student layer i reads teacher layer round(i · (L_t − 1) / (L_s − 1)); a single one reads the last."""

    kind: Literal["ratio"] = "ratio"


class UniformMap(Settings):
    """Student layer i reads the mean of the i-th of L_s equal blocks of teacher layers."""

    kind: Literal["uniform"] = "uniform"


class SkipMap(Settings):
    """Every n-th teacher layer, counted back from the last, n = max(1, L_t // L_s)."""

    kind: Literal["skip"] = "skip"


class CkaMap(Settings):
    """The teacher layers most like each base-student layer by debiased linear CKA, weighted by it."""

    kind: Literal["cka"] = "cka"
    top_k: Positive = Field(2, description="teacher layers that a student layer reads")


class KeptMap(Settings):
    """Each layer of a student that was cut from the teacher reads the teacher layer that it was."""

    kind: Literal["kept"] = "kept"


class ListMap(Settings):
    """Each student layer reads the teacher layer that is named for it."""

    kind: Literal["list"] = "list"
    layers: list[Layer] = Field(min_length=1, description="teacher layers from 0, one for each student layer")


OneHotMap = RatioMap | SkipMap | KeptMap | ListMap
LayerMap = Annotated[OneHotMap | UniformMap | CkaMap, Field(discriminator="kind")]


class FlatAligner(Settings):
    """Elastic bottleneck over all layers and heads concatenated: the structure is given up."""

    kind: Literal["flat"] = "flat"
    mlp_ratio: float = Field(1.0, gt=0, le=8, description="hidden width over input width; recommended 0.5 to 2")
    dropout: float = Field(0.1, ge=0, lt=1, description="recommended 0.05 to 0.15")
    aggregation: Literal["concat", "mean", "weighted"] = Field(
        "concat", description="teacher layers side by side, their mean, or a mean with learned weights"
    )
    layers: Literal["all", "last"] = Field("all", description="teacher layers that are read")


class LinearAligner(Settings):
    """One linear map from all of the teacher's channels to all of the student's: the weak baseline."""

    kind: Literal["linear"] = "linear"


class StructuredAligner(Settings):
    """Headwise map projection: layers, heads and dims are mapped one after the other, never flattened."""

    kind: Literal["structured"] = "structured"
    layer_map: LayerMap = Field(RatioMap(), description="which teacher layers each student layer reads")
    mixer_init: Literal["uniform", "random"] = Field("uniform", description="start of the head mixer")
    per_head: bool = Field(False, description="one dim projection per student head instead of a shared one")
    per_layer: bool = Field(True, description="one dim projection per student layer instead of a shared one")
    dim_init: Literal["random", "identity"] = Field(
        "random",
        description="start of the dim projections; identity: the teacher's KV as it is, where head dims and the number "
        "of KV heads agree, as those of a student cut from its teacher",
        exclude_if=lambda value: value == "random",
    )

    @model_validator(mode="after")
    def _identity_is_whole(self) -> Self:
        if self.dim_init == "identity" and self.mixer_init != "uniform":
            raise ValueError(
                f"dim_init: identity starts as the teacher's own KV, and mixer_init: {self.mixer_init} mixes its "
                "heads; set mixer_init: uniform"
            )
        return self


class FlatMatchedAligner(Settings):
    """Flat, with as many parameters as a structured aligner: a bottleneck of the nearest integer rank."""

    kind: Literal["flat_matched"] = "flat_matched"
    dropout: float = Field(0.1, ge=0, lt=1)
    match: StructuredAligner = Field(StructuredAligner(), description="the aligner whose parameters are counted")


class IdentityAligner(Settings):
    """The teacher's KV as it is, for a student that was cut from it: nothing is drawn, and nothing to be trained."""

    kind: Literal["identity"] = "identity"
    layer_map: Annotated[OneHotMap, Field(discriminator="kind")] = Field(
        KeptMap(), description="which teacher layer each student layer reads"
    )


# The aligners that map layers, heads and dims apart; every other one reads the KV cache as one long vector.
STRUCTURED: tuple[str, ...] = ("structured", "identity")
# The aligners that `pretrain: {kind: closed_form}` solves for.
SOLVED: tuple[str, ...] = ("flat", "linear", "flat_matched", "structured")

Aligner = Annotated[
    FlatAligner | LinearAligner | FlatMatchedAligner | StructuredAligner | IdentityAligner,
    Field(discriminator="kind"),
]


class LossSettings(Settings):
    center: bool = Field(True, description="remove fixed channel means first; false is the literal raw form")
    standardize: bool = Field(False, description="then divide every channel by the base student's standard deviation")
    granularity: Literal["head", "token"] = Field(
        "head", description="compare the vector of each head, or of all heads of a layer together"
    )
    weights: Literal["none", "importance"] = Field(
        "none", description="tokens count alike, or by the importance that kv.signals stores"
    )


class MercatorLoss(LossSettings):
    """alpha · (1 − mean cosine) + beta · MSE of log norms."""

    kind: Literal["mercator"] = "mercator"
    alpha: float = Field(1.0, ge=0, description="weight of direction")
    beta: float = Field(0.01, ge=0, description="weight of magnitude; recommended 0 to 0.05")


class MseLoss(LossSettings):
    """Mean squared error."""

    kind: Literal["mse"] = "mse"


class SmoothL1Loss(LossSettings):
    """Smooth L1 (Huber's, over its threshold)."""

    kind: Literal["smooth_l1"] = "smooth_l1"
    threshold: float = Field(1.0, gt=0, description="error at which the square turns into the absolute value")
    layer_std: bool = Field(False, description="divide by the standard deviation of each layer of the projected KV")


class HybridLoss(LossSettings):
    """A weighted sum of mercator and mse."""

    kind: Literal["hybrid"] = "hybrid"
    mercator: float = Field(0.8, ge=0, description="weight of mercator")
    mse: float = Field(0.2, ge=0, description="weight of mse")
    alpha: float = Field(1.0, ge=0, description="weight of direction in mercator")
    beta: float = Field(0.01, ge=0, description="weight of magnitude in mercator")
    schedule: Literal["none", "linear"] = Field(
        "none",
        description="linear: from mse alone at the first step to mercator alone at kv_until, in place of weights",
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        # Settings that were written out by a run have every field, at its default.
        given = {name for name in ("mercator", "mse") if getattr(self, name) != type(self).model_fields[name].default}
        if self.schedule == "linear" and given:
            raise ValueError(f"schedule: linear sets the weights {', '.join(sorted(given))} itself; remove them")
        return self


class StructuralLoss(LossSettings):
    """Mean cosine distance of keys and of values, plus KL between the attention that student queries pay to each."""

    kind: Literal["structural"] = "structural"
    attention: float = Field(1.0, ge=0, description="weight of the attention KL")


Loss = Annotated[MercatorLoss | MseLoss | SmoothL1Loss | HybridLoss | StructuralLoss, Field(discriminator="kind")]


class TimeWarp(Settings):
    """How teacher KV is laid onto fewer student tokens, for student_reasoning: equations."""

    ratio: float | None = Field(
        None, gt=0, description="student tokens per teacher token of the reasoning; null: that of the lengths"
    )
    alpha: Share = Field(1.0, description="0: the nearest teacher token; 1: linear interpolation; between: a mixture")


class Arm(Settings):
    """One arm of the experiment; arms of one run differ in nothing but what stands here."""

    aligner: Aligner | None = Field(description="teacher geometry → student geometry; null: no KV loss")
    loss: Loss = Field(MercatorLoss(), description="distance between projected teacher KV and student KV")
    kv_weight: float = Field(3.0, ge=0, description="weight of the KV loss beside the cross entropy")
    kv_warmup_ratio: Share = Field(0.0, description="share of the steps in which that weight rises from 0")
    kv_decay_ratio: Share = Field(0.0, description="share of the steps, before kv_until, in which it falls to 0")
    kv_until: Share = Field(0.3, gt=0, description="share of the steps after which the student trains without KV loss")
    tensors: Literal["both", "keys", "values"] = Field("both", description="what the KV loss compares")
    segments: list[Literal["prompt", "reasoning", "answer"]] = Field(
        ["prompt", "reasoning", "answer"], min_length=1, description="tokens that the KV loss compares"
    )
    pretrain_projector: bool = Field(
        False, description="fit the projector to the base student's KV first; false: leave it as it was drawn"
    )
    train_projector: bool = Field(False, description="train the projector jointly with the student")
    auxiliary: Auxiliaries = Auxiliaries()
    time_warp: TimeWarp = TimeWarp()
    select: Selection | None = Field(
        None, description="which of the stored tokens are compared, from a store with kv.select: full; null: all"
    )
    teacher_kv: Literal["matched", "shuffled"] = Field(
        "matched", description="shuffled: the KV of another example of like length, a control"
    )

    @model_validator(mode="after")
    def _check_across_fields(self) -> Self:
        if self.teacher_kv == "shuffled" and self.aligner is None and self.auxiliary.cka is None:
            raise ValueError("teacher_kv: shuffled changes nothing in an arm that reads no KV; give it an aligner")
        if self.loss.kind == "structural" and self.loss.attention > 0 and self.tensors == "values":
            raise ValueError("loss structural compares the attention to keys, and tensors: values; set attention: 0")
        for name in ("pretrain_projector", "train_projector"):
            if getattr(self, name) and isinstance(self.aligner, IdentityAligner):
                raise ValueError(
                    f"{name}: true, and aligner identity has no parameters; set it to false, or take "
                    "{kind: structured, layer_map: {kind: kept}, dim_init: identity}, which starts there"
                )
        if self.kv_warmup_ratio + self.kv_decay_ratio > self.kv_until:
            raise ValueError(
                f"kv_warmup_ratio={self.kv_warmup_ratio} and kv_decay_ratio={self.kv_decay_ratio} leave no step at "
                f"full weight before kv_until={self.kv_until}; shorten them or raise kv_until"
            )
        return self

    def at_full_weight(self, **changes: Any) -> Self:
        """The arm without schedules: each of its steps costs what the dearest step of a run does.

        Parameters
        ----------
        **changes
            Further settings, as they are.
        """
        full = {"warmup_ratio": 0.0, "until": 1.0}
        losses = {name: loss.model_copy(update=full) for name, loss in self.auxiliary if loss}
        schedule = {"kv_warmup_ratio": 0.0, "kv_decay_ratio": 0.0, "kv_until": 1.0}
        return self.model_copy(update=schedule | {"auxiliary": self.auxiliary.model_copy(update=losses)} | changes)

    @property
    def reads_store(self) -> bool:
        """Whether training needs anything of the teacher."""
        return self.aligner is not None or self.auxiliary != Auxiliaries()

    @property
    def is_control(self) -> bool:
        """No usable KV signal: no loss on KV, or the KV of another example."""
        compared = self.aligner is not None and self.kv_weight > 0
        return self.teacher_kv == "shuffled" or not (compared or self.auxiliary.cka)
