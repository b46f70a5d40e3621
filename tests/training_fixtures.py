"""A small student, a teacher's KV made up by example, and a training run of eight steps."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from conftest import tiny_model

from kava.align.projector import Projector
from kava.config.arms import Arm, StructuredAligner
from kava.config.schema import Distill
from kava.kv import Geometry, KeysValues
from kava.models.capture import geometry
from kava.store.codecs import TokenInfo
from kava.store.reader import StoredExample
from kava.training.at_steps import AtSteps
from kava.training.batches import Batches, stored_batches
from kava.training.calibrate import calibrate
from kava.training.journal import TrainingRun
from kava.training.loop import train
from kava.training.model import DistillationModel
from kava.training.order import data_order, longest_first

TEACHER = Geometry(4, 2, 16)


class FakeStore:
    """Teacher KV that depends on the example alone, with a bias per channel."""

    geometry = TEACHER
    mean: ClassVar = {name: torch.full((4, 2, 16), 5.0) for name in ("keys", "values")}
    std: ClassVar = {name: torch.ones(4, 2, 16) for name in ("keys", "values")}

    scope = "example"
    keeps_every_token = True

    def __init__(self, ids: list[np.ndarray]) -> None:
        self.ids = ids
        self.examples: list[int] = []

    def tokens(self, split: str, example: int) -> TokenInfo:
        del split
        ids = torch.from_numpy(self.ids[example])
        return TokenInfo(ids, torch.arange(len(ids)), torch.zeros_like(ids))

    def read(self, split: str, example: int) -> StoredExample:
        self.examples.append(example)
        generator = torch.Generator().manual_seed(example)
        shape = (len(self.ids[example]), 4, 2, 16)
        kv = KeysValues(*(torch.randn(shape, generator=generator) + 5.0 for _ in range(2)))
        return StoredExample(kv, self.tokens(split, example))


def batches(store: bool = True, shuffle_seed: int | None = None) -> Batches:
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, 61, length) for length in generator.integers(6, 20, 40)]
    segments = [np.repeat([0, 1, 2], [2, len(x) - 4, 2]) for x in ids]
    lengths = [len(x) for x in ids]
    tokens: Any = SimpleNamespace(input_ids={"train": ids}, segments={"train": segments}, lengths=lambda _: lengths)
    tokens.student_ids, tokens.student_segments = tokens.input_ids, tokens.segments
    return stored_batches(tokens, "train", FakeStore(ids) if store else None, None, shuffle_seed)  # type: ignore[arg-type]


def store_of(data: Batches) -> FakeStore:
    """Where the teacher's KV of batches comes from."""
    store: Any = data.teacher.by_name["kv"].stored.store
    return store


STRUCTURED = StructuredAligner()


def make_model(aligner: Any = STRUCTURED, train_student: bool = True, **arm: Any) -> DistillationModel:
    student = tiny_model("qwen2")
    torch.manual_seed(0)
    settings = Arm(**{"aligner": aligner, "train_projector": True, "kv_until": 1.0} | arm)
    projector = None
    if aligner:
        assert settings.aligner
        form = geometry(student.config)
        projector = Projector(settings.aligner, TEACHER, form, settings.loss.center)
        projector.set_teacher_statistics(FakeStore.mean, FakeStore.std)
    return DistillationModel(student, projector, settings, train_student, "pre_rope")


def measure(model: DistillationModel, batch_size: int) -> None:
    """What a phase does before it trains."""
    if model.projector is not None:
        model.eval()
        read = partial(batches().slice, range(40), batch_size)
        calibrate(model.projector, model.student, read, "pre_rope", base_student=True)


def order_of_run() -> list[int]:
    """What `run` reads."""
    return longest_first(data_order(7, 40, 64), [len(ids) for ids in batches().ids], 8)


def run(
    folder: Path,
    model: DistillationModel,
    tracker: str = "none",
    data: Batches | None = None,
    seed: int = 7,
    at_steps: AtSteps | None = None,
    **changes: Any,
) -> dict[str, Any]:
    short = {"steps": 8, "batch_size": 4, "accumulation": 2, "student_lr": 1e-3, "log_every": 2, "save_every": 4}
    settings = Distill(**short | changes)
    measure(model, 4)
    data = data or batches(store=model.projector is not None)
    of_run = TrainingRun(folder, "fingerprint", "arm", seed, torch.device("cpu"), tracker)
    return train(model, data, settings, of_run, at_steps)
