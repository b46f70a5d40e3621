"""What the evaluation of one model needs of memory: answers that it writes, or likelihoods of those that are there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch

from kava.config.answers import TeacherAnswers
from kava.config.models import ModelSettings, Teacher
from kava.config.schema import Evaluation
from kava.evaluation.likelihood import LOGITS_AT_ONCE
from kava.models.capture import geometry
from kava.models.load_streamed import STREAMED
from kava.plan.geometry import read_geometry
from kava.plan.memory import StageMemory, of_forward
from kava.plan.needs import Need
from kava.plan.resident import forward_parts, loaded_bytes, which
from kava.plan.streamed import Placement, streamed_parts
from kava.tasks.base import Task

# Of a logit in a forward that is scored: a copy in fp32, and its logarithm.
SCORED_BYTES = 4 + 4


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
    scored: "LikelihoodNeed | None" = None  # what it would need without writing, where that may be chosen

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

    def fixes(self) -> Iterator[tuple[str, Need]]:
        if self.scored and isinstance(self.model.source, Teacher):
            where: Placement = "streamed" if read_geometry(self.model.source).model_type in STREAMED else "resident"
            yield "evaluation.teacher: likelihood", self.scored.at(where)
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

    @property
    def streamed(self) -> bool:
        """Whether the weights come from the disk."""
        return isinstance(self.model.source, Teacher) and self.model.source.placement == "streamed"

    @property
    def teacher(self) -> Teacher:
        """The model, where it is a teacher."""
        assert isinstance(self.model.source, Teacher), "only teachers are streamed"
        return self.model.source

    def at(self, placement: Placement) -> Self:
        """With the teacher placed there."""
        teacher = self.teacher.model_copy(update={"placement": placement})
        return replace(self, model=replace(self.model, source=teacher))

    def memory(self) -> StageMemory:
        config, width = read_geometry(self.model.source), getattr(torch, self.model.dtype).itemsize
        rows = max(1, min(self.batch_size, LOGITS_AT_ONCE // (self.tokens * config.vocab_size)))
        logits = rows * self.tokens * config.vocab_size * (width + SCORED_BYTES)
        if self.streamed:
            teacher = self.teacher
            parts = streamed_parts(teacher, rows, self.tokens, None, head=True, wave=teacher.wave_tokens)
            return of_forward(parts | {"logits": logits})
        weights, dequantised = self.model.loaded(rows * self.tokens)
        cache = 2 * rows * self.tokens * geometry(config).channels * width  # that forward keeps one, and this one none
        activations = self.model.forward(rows, self.tokens)["activations"] - cache
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
    longest_prompt = min(longest, task.lengths.longest_prompts.get(hub or "", longest))
    written = EvaluationNeed(model, settings, longest_prompt, scored=scored)
    return written if written.memory().peak >= scored.memory().peak else scored


def writing_of(teacher: Teacher, answers: TeacherAnswers, prompt: int) -> EvaluationNeed:
    """Need of the teacher's answers to training questions, of which the longest has `prompt` tokens."""
    settings = Evaluation(batch_size=answers.batch_size, max_new_tokens=answers.max_new_tokens)
    return EvaluationNeed(Judged(teacher, teacher.dtype), settings, prompt, "data.answers")
