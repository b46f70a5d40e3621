"""A loss and a signal of the teacher that stand in this file alone: an arm sets them, and a run trains with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_batches import ANSWER, stores, teacher, token_set  # noqa: F401
from torch import Tensor

from kava import losses
from kava.config.arms import Arm
from kava.config.auxiliary import Auxiliaries, AuxiliaryLoss
from kava.config.schema import Distill
from kava.losses.auxiliary import Auxiliary, StudentPass
from kava.plan.example import masks, teacher_side
from kava.store.reader import StoreReader
from kava.training import signals
from kava.training.batches import stored_batches
from kava.training.journal import TrainingRun
from kava.training.loop import train
from kava.training.model import DistillationModel
from kava.training.signals.base import Signal, TeacherShape


def test_what_a_loss_reads_the_configuration_demands_of_the_store() -> None:
    demanded = {name: settings for name, settings in Auxiliaries(codi={}, logit_kd={}, cka={}, hidden={}) if settings}
    assert demanded.keys() == {loss.name for loss in losses.AUXILIARY} == set(Auxiliaries.model_fields)
    names = {signal.name for signal in signals.SIGNALS}
    for loss in losses.AUXILIARY:
        assert set(loss.reads) <= names
        needs = demanded[loss.name].needs
        assert [name for name in loss.reads if name != "kv"] == ([needs.partition(":")[0]] if needs else [])


class Best(Signal):
    """The teacher's most probable token, int64 `[N]`, one per answer token."""

    name = "best"

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        del batch
        ids = [self.stored.store.topk_logits(self.stored.split, example)[0] for example in examples]
        return {"teacher_best": torch.cat(ids)[:, 0].long()}

    def counts(self, examples: list[int]) -> dict[str, float]:
        return {"predicted": float(ANSWER * len(examples))}

    @staticmethod
    def largest(
        teacher: TeacherShape, rows: int, tokens: int, predicted: Mapping[str, int]  # noqa: F811
    ) -> dict[str, Tensor]:  # fmt: skip
        del teacher, rows, tokens
        return {"teacher_best": torch.zeros(predicted["answer"], dtype=torch.int64)}


class Follow(Auxiliary):
    """Cross entropy of the teacher's most probable token."""

    name = "follow"
    reads = ("best",)
    mean_over = "predicted"

    def forward(self, student: StudentPass, batch: Mapping[str, Tensor]) -> Tensor:
        logits = student.head(student.hidden[-1][:, :-1][student.answer[:, 1:]])
        return torch.nn.functional.cross_entropy(logits.float(), batch["teacher_best"])


class WithFollow(Auxiliaries):
    follow: AuxiliaryLoss | None = None


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Arm:
    monkeypatch.setattr(losses, "AUXILIARY", (*losses.AUXILIARY, Follow))
    monkeypatch.setattr(signals, "SIGNALS", (*signals.SIGNALS, Best))
    settings = WithFollow(follow=AuxiliaryLoss(weight=2.0, until=0.75))
    return Arm(aligner=None).model_copy(update={"auxiliary": settings})


def test_a_run_trains_with_them_and_logs_the_loss_until_its_time_is_over(
    arm: Arm, stores: Any, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    batches = stored_batches(token_set(), "train", StoreReader(stores["full"]), arm)
    assert "teacher_keys" not in batches.collate([0, 1])
    model = DistillationModel(tiny_model("qwen2", max_position_embeddings=128), None, arm, True, "pre_rope")
    settings = Distill(steps=8, batch_size=1, accumulation=3, student_lr=1e-2, log_every=2, warmup_ratio=0.0)
    train(model, batches, settings, TrainingRun(tmp_path, "f", "follow", 1, torch.device("cpu")))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line["follow"] for line in lines]
    assert logged[-1] is None
    assert logged[2] < logged[0]
    for line in lines[:3]:
        assert line["loss"] == pytest.approx(line["ce"] + 2 * line["follow"], rel=1e-5)


def test_its_mean_is_over_what_it_says_whatever_the_micro_batches(arm: Arm, stores: Any) -> None:  # noqa: F811
    batches = stored_batches(token_set(), "train", StoreReader(stores["full"]), arm)
    model = DistillationModel(tiny_model("qwen2", max_position_embeddings=128), None, arm, True, "pre_rope").eval()
    whole, parts = batches.counts([0, 1, 2]), ([0], [1, 2])
    with torch.no_grad():
        expected = model(**batches.collate([0, 1, 2]))["follow"]
        found = sum(
            model({name: batches.counts(part)[name] / (whole[name] or 1) for name in whole}, **batches.collate(part))[
                "follow"
            ]
            for part in parts
        )
    torch.testing.assert_close(found, expected)


def test_the_plan_knows_what_they_take(arm: Arm) -> None:
    shape = TeacherShape(SimpleNamespace(), 32)  # type: ignore[arg-type]
    assert teacher_side(arm, masks(2, 40, 16, 14), shape)["teacher_best"].shape == (2 * 10 - 1,)


def test_an_arm_without_them_reads_nothing_of_it(arm: Arm, stores: Any) -> None:  # noqa: F811
    del arm
    plain = stored_batches(token_set(), "train", StoreReader(stores["full"]), Arm(aligner=None))
    assert plain.teacher.by_name == {}
