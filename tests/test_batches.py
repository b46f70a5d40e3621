"""Batches: what of the teacher lies at which of the student's tokens, and what each token counts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from store_fixtures import BF16, INT8, fill_store, key, some_ids

from kava.config.arms import Arm
from kava.data.tokens import Segment
from kava.errors import UserError
from kava.kv import KeysValues, pad_ids
from kava.store.reader import StoredExample, StoreReader
from kava.training.batches import stored_batches
from kava.training.signals.kv import relative_importance

PROMPT, ANSWER, KEPT = 5, 4, 3  # tokens; of the reasoning the student of equations reads every third
ALIGNER = {"kind": "structured"}


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_model("qwen2", max_position_embeddings=128)


@pytest.fixture(scope="module")
def stores(teacher: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store with every signal, and one without any that keeps a few tokens."""
    folder = tmp_path_factory.mktemp("stores")
    signals = {"importance": {"kind": "rkv"}, "hidden_states": True, "topk_logits": 5}
    signals |= {"token_hidden_states": [0, 1, 2]}
    fill_store(folder / "full", teacher, some_ids(), BF16, signals=signals)
    fill_store(folder / "kept", teacher, some_ids(), INT8, select={"kind": "uniform", "budget": 6})
    return {name: folder / name / "manifest.json" for name in ("full", "kept")}


def token_set(equations: bool = False) -> Any:
    ids = some_ids()
    segments = [segments_of(len(x) - PROMPT - ANSWER) for x in ids]
    tokens = SimpleNamespace(input_ids={"train": ids}, segments={"train": segments})
    tokens.lengths = lambda _: [len(x) for x in ids]
    tokens.student_ids, tokens.student_segments = tokens.input_ids, tokens.segments
    if equations:
        short = [np.concatenate([x[:PROMPT], x[PROMPT:-ANSWER:KEPT], x[-ANSWER:]]) for x in ids]
        tokens.student_ids = {"train": short}
        tokens.student_segments = {"train": [segments_of(len(x) - PROMPT - ANSWER) for x in short]}
    return tokens


def segments_of(reasoning: int) -> np.ndarray:
    return np.repeat([0, 1, 2], [PROMPT, reasoning, ANSWER]).astype(np.int8)


def arm(aligner: Any = ALIGNER, **settings: Any) -> Arm:
    return Arm.model_validate({"aligner": aligner} | settings)


def of_ramps(store: StoreReader) -> StoreReader:
    """The store with KV in which every key of token t is t, and every value 10 · example + t."""
    read = store.read

    def planted(split: str, example: int) -> StoredExample:
        kv, info = read(split, example)
        t = info.position.float().view(-1, 1, 1, 1)
        blocks = (t.expand(kv.keys.shape), (10 * example + t).expand(kv.keys.shape))
        return StoredExample(KeysValues(*blocks), info)

    store.read = planted  # type: ignore[method-assign]
    return store


def test_without_an_arm_all_tokens_count_alike_and_nothing_else_is_read(stores: dict[str, Path]) -> None:
    batch = stored_batches(token_set(), "train", StoreReader(stores["full"])).collate([0, 1])
    assert torch.equal(batch["kv_mask"], batch["attention_mask"])
    assert torch.equal(batch["kv_weight"], batch["attention_mask"].float())
    assert not {"teacher_hidden", "topk_ids"} & batch.keys()
    lengths = token_set().lengths("train")
    for row in (0, 1):
        assert batch["segments"][row, : lengths[row]].tolist() == token_set().segments["train"][row].tolist()
        assert (batch["segments"][row, lengths[row] :] == -1).all()


@pytest.mark.parametrize("names", [["reasoning"], ["prompt", "answer"]])
def test_tokens_of_other_segments_weigh_nothing(names: list[str], stores: dict[str, Path]) -> None:
    batch = stored_batches(token_set(), "train", StoreReader(stores["full"]), arm(segments=names)).collate([2, 3])
    wanted = torch.stack([batch["segments"] == Segment[name.upper()] for name in names]).any(0)
    assert torch.equal(batch["kv_weight"], wanted.float())
    assert torch.equal(batch["kv_mask"], batch["attention_mask"])


def test_importance_weighs_the_reasoning_by_its_share_and_the_rest_by_one(stores: dict[str, Path]) -> None:
    store = StoreReader(stores["full"])
    batch = stored_batches(token_set(), "train", store, arm(loss={"kind": "mse", "weights": "importance"})).collate(
        [1, 4]
    )
    for row, example in enumerate([1, 4]):
        n = token_set().lengths("train")[example]
        scores = store.scores("train", example).importance.double().numpy()[PROMPT : n - ANSWER]
        weight = batch["kv_weight"][row].double().numpy()
        np.testing.assert_allclose(weight[PROMPT : n - ANSWER], scores * len(scores) / scores.sum(), rtol=1e-5)
        assert (weight[:PROMPT] == 1).all()
        assert (weight[n - ANSWER : n] == 1).all()
        assert not weight[n:].any()


def test_importance_of_nothing_weighs_one_everywhere() -> None:
    nan = float("nan")
    for importance in ([nan, nan, nan], [nan, 0.0, 0.0]):
        assert relative_importance(torch.tensor(importance)).tolist() == [1, 1, 1]
    assert relative_importance(torch.tensor([nan, 0.0, 0.5, 0.25, nan])).tolist() == [1, 0, 2, 1, 1]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_teacher_kv_is_laid_onto_fewer_tokens_by_interpolation_within_segments(
    alpha: float, stores: dict[str, Path]
) -> None:
    tokens, store = token_set(equations=True), of_ramps(StoreReader(stores["full"]))
    batches = stored_batches(tokens, "train", store, arm(time_warp={"alpha": alpha}))
    examples = [1, 5, 2]
    batch = batches.collate(examples)
    assert torch.equal(batch["kv_mask"], batch["attention_mask"])
    assert torch.equal(batch["kv_weight"], batch["attention_mask"].float())
    for row, example in enumerate(examples):
        theirs, ours = len(tokens.input_ids["train"][example]), len(tokens.student_ids["train"][example])
        n_t, n_s = theirs - PROMPT - ANSWER, ours - PROMPT - ANSWER
        x = (np.arange(n_s) + 0.5) * n_t / n_s - 0.5
        linear, nearest = np.interp(x, np.arange(n_t), np.arange(n_t)), np.clip(np.floor(x + 0.5), 0, n_t - 1)
        reasoning = PROMPT + alpha * linear + (1 - alpha) * nearest
        expected = np.concatenate([np.arange(PROMPT), reasoning, np.arange(theirs - ANSWER, theirs)])
        for name, shift in (("teacher_keys", 0), ("teacher_values", 10 * example)):
            laid = batch[name][row, :, :, :ours]
            np.testing.assert_allclose(laid, np.broadcast_to(expected[:, None], laid.shape) + shift, atol=1e-4)
            assert not batch[name][row, :, :, ours:].any()


def test_another_examples_kv_is_laid_onto_fewer_tokens_by_its_own_segments(stores: dict[str, Path]) -> None:
    tokens, store = token_set(equations=True), of_ramps(StoreReader(stores["full"]))
    batches = stored_batches(tokens, "train", store, arm(teacher_kv="shuffled"), 0)
    batch = batches.collate([0])
    other = batches.teacher.by_name["kv"].stored.source[0]
    assert other != 0
    theirs, ours = len(tokens.input_ids["train"][other]), len(tokens.student_ids["train"][0])
    assert batch["kv_mask"].sum() == ours
    keys = batch["teacher_keys"][0, 0, 0, :, 0]
    assert keys[:PROMPT].tolist() == list(range(PROMPT))
    assert keys[-ANSWER:].tolist() == list(range(theirs - ANSWER, theirs))
    reasoning = keys[PROMPT:-ANSWER].numpy()
    np.testing.assert_allclose(np.diff(reasoning), (theirs - PROMPT - ANSWER) / len(reasoning), atol=1e-4)


def test_auxiliary_signals_are_those_of_the_example_whoever_gives_the_kv(teacher: Any, stores: dict[str, Path]) -> None:
    auxiliary = {"codi": {}, "logit_kd": {}}
    of_codi = arm(auxiliary=auxiliary, teacher_kv="shuffled")
    for equations in (False, True):
        tokens = token_set(equations)
        batch = stored_batches(tokens, "train", StoreReader(stores["full"]), of_codi, 0).collate([3, 0])
        assert batch["teacher_hidden"].dtype == batch["topk_logprobs"].dtype == torch.float32
        assert batch["topk_ids"].dtype == torch.int64
        assert batch["topk_ids"].shape == batch["topk_logprobs"].shape == (2 * ANSWER, 5)
        answers = batch["segments"] == Segment.ANSWER
        assert len(batch["topk_ids"]) == answers.sum()
        for row, example in enumerate([3, 0]):
            x = tokens.input_ids["train"][example]
            with torch.inference_mode():
                output = teacher(pad_ids([x])[0], output_hidden_states=True)
            hidden = torch.stack([layer[0, -ANSWER - 1] for layer in output.hidden_states])
            torch.testing.assert_close(batch["teacher_hidden"][row], hidden, rtol=0.01, atol=0.01)
            best = output.logits[0, -ANSWER - 1 : -1].log_softmax(-1).topk(5)
            rows = slice(row * ANSWER, (row + 1) * ANSWER)
            assert torch.equal(batch["topk_ids"][rows], best.indices)
            torch.testing.assert_close(batch["topk_logprobs"][rows], best.values, rtol=0.002, atol=0.002)


def test_kv_is_read_where_it_is_compared_alone(stores: dict[str, Path]) -> None:
    for auxiliary, reads in (({"codi": {}, "logit_kd": {}}, False), ({"cka": {}}, True)):
        store = StoreReader(stores["full"])
        batch = stored_batches(token_set(), "train", store, arm(None, auxiliary=auxiliary)).collate([0, 1])
        assert ("teacher_keys" in batch) == reads
        assert bool(batch["kv_mask"].any()) == bool(batch["kv_weight"].any()) == reads


def test_selected_tokens_alone_weigh(stores: dict[str, Path]) -> None:
    on_reading = key(BF16, select={"kind": "uniform", "budget": 6}).select
    for store in (StoreReader(stores["kept"]), StoreReader(stores["full"], select=on_reading)):
        batch = stored_batches(token_set(), "train", store, arm(segments=["reasoning"])).collate([1, 2])
        assert batch["kv_weight"].sum(1).tolist() == [6, 6]
        assert torch.equal(batch["kv_weight"].bool(), batch["kv_mask"].bool())
        for row, example in enumerate([1, 2]):
            kept = store.kept("train", example)
            assert all(torch.equal(a, b) for a, b in zip(kept, store.read("train", example).info, strict=True))
            assert kept.position.tolist() == batch["kv_mask"][row].nonzero().flatten().tolist()


def test_an_example_without_a_token_to_compare_is_named_before_training(stores: dict[str, Path]) -> None:
    on_reading = key(BF16, select={"kind": "uniform", "budget": 6}).select
    for store in (StoreReader(stores["kept"]), StoreReader(stores["full"], select=on_reading)):
        with pytest.raises(UserError, match=r"train example 0 has no token.*segments \['answer'\]"):
            stored_batches(token_set(), "train", store, arm(segments=["answer"]))
    # Partners of like length do not reach as far.
    with pytest.raises(UserError, match=r"segments \['answer'\]"):
        stored_batches(token_set(), "train", StoreReader(stores["full"]), arm(segments=["answer"]), 0)


def test_a_student_whose_answer_is_other_tokens_cannot_learn_the_teachers_logits(stores: dict[str, Path]) -> None:
    tokens = token_set(equations=True)
    tokens.student_ids["train"][3][-2] += 1
    stored_batches(tokens, "train", StoreReader(stores["full"]), arm(auxiliary={"codi": {}}))
    with pytest.raises(UserError, match="answer of train example 3 is 4 tokens for the student and 4 for the teacher"):
        stored_batches(tokens, "train", StoreReader(stores["full"]), arm(auxiliary={"logit_kd": {}}))


def test_a_segment_that_the_teacher_lacks_is_named(stores: dict[str, Path]) -> None:
    tokens = token_set(equations=True)
    tokens.segments["train"][4] = np.where(tokens.segments["train"][4] == 1, 0, tokens.segments["train"][4])
    with pytest.raises(UserError, match="the student reads reasoning in train example 4 where the teacher has none"):
        stored_batches(tokens, "train", StoreReader(stores["full"]), arm())


def test_fewer_tokens_need_a_store_of_all_tokens(stores: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="interpolates between neighbouring tokens"):
        stored_batches(
            token_set(equations=True), "train", StoreReader(stores["kept"]), arm(None, auxiliary={"cka": {}})
        )


def test_ids_are_the_students_and_the_store_is_checked_against_the_teachers(stores: dict[str, Path]) -> None:
    tokens = token_set(equations=True)
    batches = stored_batches(tokens, "train", StoreReader(stores["full"]), arm())
    assert batches.ids is tokens.student_ids["train"]
    assert batches.collate([2])["input_ids"][0].tolist() == tokens.student_ids["train"][2].tolist()
    tokens.input_ids["train"][0] = tokens.input_ids["train"][0] + 1
    with pytest.raises(UserError, match="they are of other data"):
        stored_batches(tokens, "train", StoreReader(stores["full"]), arm())


def test_batches_read_ahead_are_those_read_one_by_one(stores: dict[str, Path]) -> None:
    batches = stored_batches(
        token_set(), "train", StoreReader(stores["full"]), arm(auxiliary={"codi": {}, "logit_kd": {}})
    )
    for first, ahead in zip(range(0, 6, 2), batches.slice(range(6), 2), strict=True):
        alone = batches.collate([first, first + 1])
        assert alone.keys() == ahead.keys()
        assert all(torch.equal(ahead[name], alone[name]) for name in alone)


def test_losses_of_some_segments_are_shared_by_their_tokens_and_cosines_by_all_that_have_kv(
    stores: dict[str, Path],
) -> None:
    batches = stored_batches(token_set(), "train", StoreReader(stores["full"]), arm(segments=["reasoning"]))
    lengths, counts = token_set().lengths("train"), batches.counts([2, 3])
    assert counts["covered"] == lengths[2] + lengths[3]
    assert counts["kv"] == lengths[2] + lengths[3] - 2 * (PROMPT + ANSWER)
