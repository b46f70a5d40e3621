"""Top-k logits of every token with a label: stored, laid beside the student's, compared, counted and planned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from job_fixtures import all_jobs, settings_of_a_run  # noqa: F401
from scipy.special import log_softmax
from store_fixtures import BF16, fill_store, key, some_ids
from test_batches import PROMPT, arm, token_set
from torch import Tensor

from kava.config import Config
from kava.config.kv import Signals
from kava.config.load import merge
from kava.errors import UserError
from kava.kv import pad_ids
from kava.losses import logit_kd as module
from kava.plan.example import masks, teacher_side
from kava.store.reader import StoreReader
from kava.training.batches import Batches, stored_batches
from kava.training.model import DistillationModel
from kava.training.signals.base import TeacherShape

ALL = ["reasoning", "answer"]
KD = arm(None, auxiliary={"logit_kd": {}})
EXAMPLES = [0, 1, 3, 5]


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_model("qwen2", max_position_embeddings=128)


@pytest.fixture(scope="module")
def manifest(teacher: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    fill_store(folder, teacher, some_ids(), BF16, signals={"topk_logits": 5, "topk_segments": ALL})
    return folder / "manifest.json"


def prepared(manifest: Path) -> tuple[DistillationModel, Batches]:
    student = tiny_model("qwen2", max_position_embeddings=128, num_hidden_layers=2)
    model = DistillationModel(student, None, KD, True, "pre_rope")
    return model.eval(), stored_batches(token_set(), "train", StoreReader(manifest), KD)


def losses(model: DistillationModel, batches: Batches, examples: list[int], of: list[int]) -> dict[str, Tensor]:
    own, whole = batches.counts(examples), batches.counts(of)
    return model({name: own[name] / (whole[name] or 1) for name in whole}, **batches.collate(examples))


def test_they_are_the_teachers_where_it_predicts_each_of_them(manifest: Path, teacher: Any) -> None:
    store = StoreReader(manifest)
    for example, x in enumerate(some_ids()):
        with torch.inference_mode():
            expected = teacher(pad_ids([x])[0]).logits[0].log_softmax(-1)[PROMPT - 1 : -1].topk(5)
        ids, logprobs = store.topk_logits("train", example)
        assert torch.equal(ids.long(), expected.indices)
        torch.testing.assert_close(logprobs.float(), expected.values, rtol=0.002, atol=0.002)


def test_logit_kd_is_the_mean_divergence_over_every_token_with_a_label(manifest: Path) -> None:
    model, batches = prepared(manifest)
    batch, store = batches.collate(EXAMPLES), StoreReader(manifest)
    with torch.no_grad():
        found = model(**batch)["logit_kd"]
        logits = model.student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().numpy()
    divergences = []
    for row, example in enumerate(EXAMPLES):
        ids, logprobs = store.topk_logits("train", example)
        for place in range(len(batches.ids[example]) - PROMPT):
            own = log_softmax(logits[row, PROMPT + place - 1])
            t = np.exp(logprobs[place].double().numpy())
            s = np.exp(own[ids[place].numpy()])
            t, s = np.append(t, 1 - t.sum()), np.append(s, 1 - s.sum())
            divergences.append(float((t * np.log(t / s)).sum()))
    assert len(divergences) == int(batch["label_mask"].sum()) == batches.counts(EXAMPLES)["predicted"]
    assert float(found) == pytest.approx(np.mean(divergences), rel=1e-3)


def test_micro_batches_of_unlike_lengths_add_up_to_the_whole_step(manifest: Path) -> None:
    model, batches = prepared(manifest)
    found = []
    for parts in ([EXAMPLES], [EXAMPLES[:1], EXAMPLES[1:]]):
        model.zero_grad()
        total = [losses(model, batches, part, EXAMPLES) for part in parts]
        sum(each["loss"] for each in total).backward()
        found.append((sum(each["logit_kd"] for each in total), model.student.model.layers[0].mlp.up_proj.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_pieces_of_the_logits_give_the_loss_and_gradient_of_all_at_once(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = prepared(manifest)
    found = []
    for at_once in (2**24, 20 * 64):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        loss = model(**batches.collate(EXAMPLES))["loss"]
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.student.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_a_student_that_reads_less_of_the_reasoning_is_refused(manifest: Path) -> None:
    with pytest.raises(UserError, match="reasoning and answer of train example 0 is 11 tokens for the student and 25"):
        stored_batches(token_set(equations=True), "train", StoreReader(manifest), KD)


def test_the_plan_counts_every_token_with_a_label() -> None:
    real = masks(2, 40, 16, 10)
    for segments, each in ((["answer"], 10), (ALL, 24)):
        shape = TeacherShape(SimpleNamespace(), 32, top=3, topk_segments=segments)  # type: ignore[arg-type]
        side = teacher_side(KD, real, shape)
        assert side["topk_ids"].shape == (2 * each - 1, 3)  # one is padding
        assert side["topk_from"].shape == (2 * each - 1,)


@pytest.mark.parametrize("segments", [[], ["answer", "reasoning"], ["answer", "answer"], ["prompt"]])
def test_segments_are_named_once_and_in_order(segments: list[str]) -> None:
    with pytest.raises(ValueError, match="topk_segments"):
        Signals.model_validate({"topk_segments": segments})


def test_the_setting_is_in_a_key_only_where_it_says_something_else(base: dict[str, Any]) -> None:
    assert "topk_segments" not in key(BF16, signals={"topk_logits": 5, "topk_segments": ["answer"]}).model_dump_json()
    keys = {
        all_jobs(Config.model_validate(merge(base, {"kv": {"signals": {"topk_logits": 8} | given}})))[
            "extract", None
        ].output
        for given in ({}, {"topk_segments": ["answer"]}, {"topk_segments": ALL})
    }
    assert len(keys) == 2


def test_a_student_that_reads_less_is_refused_as_the_configuration_is_read(base: dict[str, Any]) -> None:
    signals = {"kv": {"signals": {"topk_logits": 8, "topk_segments": ALL}}}
    less = {"student_reasoning": "equations", "arms": {"sft": {"auxiliary": {"logit_kd": {}}}}}
    with pytest.raises(
        ValueError, match=r"arms\.sft\.auxiliary\.logit_kd .* set kv\.signals\.topk_segments: \[answer\]"
    ):
        Config.model_validate(merge(merge(base, signals), less))
