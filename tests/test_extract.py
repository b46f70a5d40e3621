"""Extraction stores what the teacher computes: its KV, the tokens that are chosen, its signals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from store_fixtures import (
    BF16,
    CODECS_UNDER_TEST,
    GEOMETRY,
    INT8,
    LENGTHS,
    SHARD_TOKENS,
    fill_store,
    key,
    some_ids,
    write,
)  # fmt: skip

from kava.config.models import Teacher
from kava.data.tokens import Segment
from kava.errors import UserError
from kava.kv import pad_ids
from kava.models.capture import capture, capture_with_hidden
from kava.store.contents import Contents
from kava.store.layout import Packing
from kava.store.reader import StoreReader
from kava.store.writer import StoreWriter
from kava.teacher.extractor import batches

SCORES = {"importance": {"kind": "rkv"}}


def test_batches_hold_each_example_once_within_the_token_budget() -> None:
    packing = Packing.pack(LENGTHS["train"], 128)
    for shard in range(packing.shards):
        found = batches(packing.members(shard), LENGTHS["train"], 100)
        assert sorted(example for batch in found for example in batch) == packing.members(shard).tolist()
        assert all(len(b) == 1 or len(b) * max(LENGTHS["train"][i] for i in b) <= 100 for b in found)


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_stored_kv_equals_the_teacher_run_live_on_the_same_batch(settings: dict, tmp_path: Path, tinystories) -> None:
    """The real path: trained weights, NF4 by bitsandbytes, bf16 compute, un-rotated keys."""
    from kava.models.load import load_teacher

    source = Teacher(model=str(tinystories))
    teacher = load_teacher(source, torch.device("cpu"))
    ids = some_ids(2000)
    fill_store(tmp_path, teacher, ids, settings)
    store = StoreReader(tmp_path / "manifest.json")
    packing = Packing.pack([len(x) for x in ids], SHARD_TOKENS)
    for shard in range(packing.shards):
        for batch in batches(packing.members(shard), [len(x) for x in ids], SHARD_TOKENS):
            with torch.inference_mode():
                live, _ = capture(teacher, *pad_ids([ids[example] for example in batch]))
            for row, example in enumerate(batch):
                for stored, tensor in zip(store.read("train", example).kv, live, strict=True):
                    expected = tensor[row].permute(2, 0, 1, 3)[: len(ids[example])]
                    if settings["kind"] == "bf16":
                        assert torch.equal(stored, expected)
                    else:
                        cosine = torch.nn.functional.cosine_similarity(stored, expected.float(), dim=-1)
                        assert cosine.mean() > {"int8": 0.9999, "int4": 0.99, "transform": 0.98}[settings["kind"]]


def test_extraction_in_batches_equals_one_by_one_in_fp32(tmp_path: Path) -> None:
    teacher = tiny_model("llama", max_position_embeddings=128)
    ids = some_ids()
    stores = []
    for batch_tokens in (512, 1):
        fill_store(tmp_path / str(batch_tokens), teacher, ids, INT8, batch_tokens=batch_tokens, shard_tokens=512)
        stores.append(StoreReader(tmp_path / str(batch_tokens) / "manifest.json"))
    assert len(batches(range(7), [len(x) for x in ids], 512)) < len(ids)
    for example in range(len(ids)):
        for together, alone in zip(*(store.read("train", example).kv for store in stores), strict=True):
            torch.testing.assert_close(together, alone, atol=0.02, rtol=0)


def test_a_store_of_selected_tokens_keeps_their_kv_ids_positions_and_scores(tmp_path: Path) -> None:
    teacher, ids = tiny_model("qwen2", max_position_embeddings=128), some_ids()
    for scope in ("example", "head"):
        whole, kept = tmp_path / f"whole-{scope}", tmp_path / f"kept-{scope}"
        select = {"kind": "rkv", "budget": 9, "scope": scope}
        signals = {"importance": {"kind": "rkv", "scope": scope}}
        fill_store(whole, teacher, ids, BF16, signals=signals)
        fill_store(kept, teacher, ids, BF16, select=select)
        selection = key(BF16, select=select).select
        on_reading = StoreReader(whole / "manifest.json", select=selection)
        at_extraction = StoreReader(kept / "manifest.json")
        assert on_reading.scope == at_extraction.scope == scope
        for example, x in enumerate(ids):
            read, stored = on_reading.read("train", example), at_extraction.read("train", example)
            rows = min(9, len(x) - 9)
            assert stored.info.position.shape == ((rows,) if scope == "example" else (rows, 3, 2))
            assert torch.equal(stored.info.id, torch.from_numpy(x)[stored.info.position])
            for a, b in zip(read.info, stored.info, strict=True):
                assert torch.equal(a, b)
            for a, b in zip(read.kv, stored.kv, strict=True):
                # The shards of the two stores, and so their batches, differ: some machines round otherwise in them.
                torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-6)
            assert torch.isfinite(at_extraction.scores("train", example).importance).all()


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST)
def test_a_lossy_codec_does_not_change_what_is_selected_on_reading(codec: dict, tmp_path: Path) -> None:
    teacher, ids = tiny_model("llama", max_position_embeddings=128), some_ids()
    fill_store(tmp_path / "exact", teacher, ids, BF16, signals=SCORES)
    fill_store(tmp_path / "lossy", teacher, ids, codec, signals=SCORES)
    select = key(BF16, select={"kind": "rkv", "budget": 7}).select
    stores = [StoreReader(tmp_path / name / "manifest.json", select=select) for name in ("exact", "lossy")]
    for example in range(len(ids)):
        exact, lossy = (store.read("train", example).info.position for store in stores)
        assert torch.equal(exact, lossy)


def test_a_selection_that_the_store_cannot_serve_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "full", INT8)
    rkv = key(INT8, select={"kind": "rkv", "budget": 8}).select
    with pytest.raises(UserError, match=r"needs kv\.signals\.importance"):
        StoreReader(tmp_path / "full" / "manifest.json", select=rkv)
    fill_store(tmp_path / "kept", tiny_model("llama", max_position_embeddings=128), some_ids(), INT8, select=rkv)
    with pytest.raises(UserError, match=r"needs a store with kv\.select: full"):
        StoreReader(tmp_path / "kept" / "manifest.json", select=rkv)
    head = {"kind": "random", "budget": 8, "scope": "head"}
    with pytest.raises(ValueError, match="set scope: example"):
        key({"kind": "transform"}, select=head)


def test_a_store_meets_its_target_size_with_all_that_is_in_it(tmp_path: Path) -> None:
    teacher = tiny_model("llama", max_position_embeddings=128)
    ids = [np.random.default_rng(example).integers(3, 61, 60 + example % 30) for example in range(300)]
    for ratio in (0.1, 0.2):
        fill_store(tmp_path / str(ratio), teacher, ids, {"kind": "transform", "target_ratio": ratio}, shard_tokens=8192)
        found = StoreReader(tmp_path / str(ratio) / "manifest.json").manifest["ratio"]
        assert 0.8 * ratio < found <= 1.01 * ratio


def test_signals_are_those_of_the_model(tmp_path: Path) -> None:
    teacher, ids = tiny_model("qwen2", max_position_embeddings=128), some_ids()
    signals = {"hidden_states": True, "topk_logits": 5, **SCORES}
    fill_store(tmp_path, teacher, ids, INT8, signals=signals)
    store = StoreReader(tmp_path / "manifest.json")
    for example, x in enumerate(ids):
        tokens, mask = pad_ids([x])
        with torch.inference_mode():
            _, hidden = capture_with_hidden(teacher, tokens, mask)
            expected = teacher(tokens).logits[0].log_softmax(-1)
        before_answer = len(x) - 4 - 1
        states = torch.stack([layer[0, before_answer] for layer in hidden])
        torch.testing.assert_close(store.hidden_states("train", example).float(), states, rtol=0.01, atol=0.01)
        top_ids, top = store.topk_logits("train", example)
        best = expected[before_answer:-1].topk(5)
        assert torch.equal(top_ids.long(), best.indices)
        torch.testing.assert_close(top.float(), best.values, rtol=0.002, atol=0.002)
        importance = store.scores("train", example).importance
        reasoning = store.read("train", example).info.segment == Segment.REASONING
        assert torch.equal(torch.isfinite(importance), reasoning)


def test_an_example_without_reasoning_is_named_before_the_teacher_runs() -> None:
    contents = Contents(key(INT8, select={"kind": "uniform", "budget": 4}), GEOMETRY, 32)
    only_prompt = {"train": [np.zeros(9, np.int8)]}
    with pytest.raises(UserError, match="train example 0 has no token that"):
        StoreWriter(Path("unused"), contents, only_prompt)
