"""What training reads: the examples in their fixed order, and the teacher's KV at the tokens where it stands."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import FakeStore, batches, make_model, order_of_run, run, store_of

from kava.config.arms import FlatAligner, StructuredAligner
from kava.errors import UserError
from kava.kv import KeysValues
from kava.store.codecs import TokenInfo
from kava.store.reader import StoredExample
from kava.training.order import data_order, partners


def test_labels_are_on_reasoning_answer_and_end_only() -> None:
    batch = batches(store=False).collate([0])
    assert batch["label_mask"][0].tolist() == [0, 0] + [1] * (batch["input_ids"].shape[1] - 2)


def test_a_batch_keeps_the_dtype_of_the_store_and_pads_with_zeros() -> None:
    data = batches()
    read = store_of(data).read

    def in_bf16(split: str, example: int) -> StoredExample:
        kv, info = read(split, example)
        return StoredExample(KeysValues(*(tensor.bfloat16() for tensor in kv)), info)

    store_of(data).read = in_bf16  # type: ignore[method-assign]
    batch = data.collate([0, 1, 2])
    for name, tensor in zip(("teacher_keys", "teacher_values"), read("train", 1).kv, strict=True):
        assert batch[name].dtype == torch.bfloat16
        own = len(data.ids[1])
        assert torch.equal(batch[name][1, :, :, :own], tensor.bfloat16().permute(1, 2, 0, 3))
        assert not batch[name][1, :, :, own:].any()
    widened = {name: x.float() if x.is_floating_point() else x for name, x in batch.items()}
    model = make_model().eval()
    assert torch.equal(model(**batch)["loss"], model(**widened)["loss"])


def test_selected_tokens_are_compared_where_they_stand() -> None:
    data = batches()
    read = store_of(data).read
    store_of(data).keeps_every_token = False  # type: ignore[misc]

    def every_third(split: str, example: int) -> StoredExample:
        kv, info = read(split, example)
        return StoredExample(KeysValues(*(x[1::3] for x in kv)), TokenInfo(*(x[1::3] for x in info)))

    store_of(data).read = every_third  # type: ignore[method-assign]
    whole, kept = batches().collate([0, 1]), data.collate([0, 1])
    expected = torch.zeros_like(whole["kv_mask"])
    expected[:, 1::3] = whole["kv_mask"][:, 1::3]
    assert torch.equal(kept["kv_mask"], expected)
    at_kept = expected[:, None, None, :, None].bool()
    assert torch.equal(kept["teacher_keys"], torch.where(at_kept, whole["teacher_keys"], 0.0))


def test_a_store_that_cannot_teach_token_by_token_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(FakeStore, "scope", "head")
    with pytest.raises(UserError, match="set scope: example"):
        batches()
    monkeypatch.setattr(FakeStore, "scope", "example")
    tokens = FakeStore.tokens
    monkeypatch.setattr(FakeStore, "tokens", lambda *a: tokens(*a)._replace(id=tokens(*a).id + 1))
    with pytest.raises(UserError, match="they are of other data"):
        batches()


def test_a_loss_whose_time_is_over_is_not_read_for(tmp_path: Path) -> None:
    data = batches()
    run(tmp_path, make_model(kv_until=0.3), data=data)
    assert store_of(data).examples == order_of_run()[: 3 * 8]  # steps 0, 1 and 2 of 8 are under 0.3


def test_data_order_is_one_permutation_after_the_other_and_fixed_by_the_seed() -> None:
    order = data_order(42, 10, 25)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    random.seed(1)
    assert order == data_order(42, 10, 25) == data_order(42, 10, 30)[:25]
    assert order != data_order(43, 10, 25)


def test_every_arm_of_a_seed_sees_the_same_examples(tmp_path: Path) -> None:
    facts = [run(tmp_path / str(n), make_model(a)) for n, a in enumerate((FlatAligner(), StructuredAligner(), None))]
    for name in ("optimizer_steps", "train_tokens", "data_order_sha256"):
        assert len({fact[name] for fact in facts}) == 1


def test_shuffled_partners_are_others_of_like_length_and_each_is_used_once() -> None:
    lengths = np.random.default_rng(0).integers(20, 200, 300).tolist()
    partner = partners(lengths, 1)
    assert sorted(partner) == list(range(300))
    assert all(own != other for own, other in enumerate(partner))
    assert np.mean([abs(lengths[own] - lengths[other]) for own, other in enumerate(partner)]) < 10
    assert partners([5, 9], 0) == [1, 0]
    with pytest.raises(UserError, match="at least two"):
        partners([5], 0)


def test_shuffled_arm_reads_another_examples_kv_and_masks_what_it_lacks() -> None:
    shuffled, matched = batches(shuffle_seed=3), batches()
    sources = shuffled.teacher.by_name["kv"].stored.source
    example = next(i for i, other in enumerate(sources) if len(shuffled.ids[other]) < len(shuffled.ids[i]))
    batch, own = shuffled.collate([example]), matched.collate([example])
    assert torch.equal(batch["input_ids"], own["input_ids"])
    assert batch["kv_mask"].sum() == len(shuffled.ids[sources[example]]) < own["kv_mask"].sum()
    assert not torch.equal(batch["teacher_keys"], own["teacher_keys"])
