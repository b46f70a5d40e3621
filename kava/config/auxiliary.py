"""Settings of the losses that an arm may have beside cross entropy and KV."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from kava.config.base import Layer, Settings, Share


class AuxiliaryLoss(Settings):
    # Setting of kv.signals without which the store lacks what the loss reads, and a value for it.
    needs: ClassVar[str | None] = None

    weight: float = Field(1.0, ge=0, description="weight beside the cross entropy")
    warmup_ratio: Share = Field(0.0, description="share of the steps in which the weight rises from 0")
    until: Share = Field(1.0, gt=0, description="share of the steps after which the weight is 0")

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.warmup_ratio > self.until:
            raise ValueError(
                f"warmup_ratio={self.warmup_ratio} ends after until={self.until}; shorten it or raise until"
            )
        return self


class Codi(AuxiliaryLoss):
    """Hidden states of all layers at the last token before the answer (CODI, arXiv 2502.21074)."""

    needs = "hidden_states: true"


class LogitKd(AuxiliaryLoss):
    """KL from the teacher's stored top-k probabilities on answer tokens, the rest as one more outcome."""

    needs = "topk_logits: 32"


class CkaLoss(AuxiliaryLoss):
    """1 − linear CKA between each student layer's KV and the teacher's at the ratio of depth; needs no aligner."""


class HiddenLoss(AuxiliaryLoss):
    """1 − mean cosine of every token's hidden states behind each student layer and its teacher layer."""

    needs = "token_hidden_states: [0, 1]"

    layers: list[Layer] | None = Field(
        None,
        min_length=1,
        description="teacher layers from 0, one for each student layer; null: those that a student cut from the "
        "teacher has kept, for any other one those at the ratio of depth",
    )
    center: bool = Field(True, description="remove fixed channel means of the teacher and of the base student first")


class Auxiliaries(Settings):
    codi: Codi | None = Field(None, description="needs kv.signals.hidden_states")
    logit_kd: LogitKd | None = Field(None, description="needs kv.signals.topk_logits")
    cka: CkaLoss | None = None
    hidden: HiddenLoss | None = Field(
        None, description="needs kv.signals.token_hidden_states", exclude_if=lambda value: value is None
    )
