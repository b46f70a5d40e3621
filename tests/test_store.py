"""The store gives back what the teacher computed, or says that it cannot."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from store_fixtures import (
    CODECS_UNDER_TEST,
    GEOMETRY,
    LENGTHS,
    SHARD_TOKENS,
    content,
    files,
    key,
    open_writer,
    segments,
    write,
)  # fmt: skip

from kava.cache.capture import Geometry, capture, capture_with_hidden, geometry
from kava.cache.codecs import KvBlock, TokenInfo, make_codec
from kava.cache.contents import Contents
from kava.cache.extract import Extractor, batches, pad_ids
from kava.cache.fill import fill
from kava.cache.layout import Packing, chunk_tokens, open_group
from kava.cache.reader import StoreReader
from kava.cache.writer import StoreWriter
from kava.data.tokens import Segment
from kava.errors import UserError

INT8, BF16 = {"kind": "int8"}, {"kind": "bf16"}
SCORES = {"importance": {"kind": "rkv"}}


def fill_store(folder: Path, teacher: Any, ids: list[np.ndarray], codec: dict, **changes: Any) -> Contents:
    """Extract a store of two splits by the real path; returns its contents."""
    settings = key(codec, **changes)
    input_ids = {"train": ids, "validation": ids[:2]}
    of_tokens = {split: [np.repeat([0, 1, 2], [5, len(x) - 9, 4]) for x in x_of] for split, x_of in input_ids.items()}
    contents = Contents(settings, geometry(teacher.config), teacher.config.hidden_size)
    writer = StoreWriter(folder, contents, of_tokens)
    fill(writer, lambda _: Extractor(teacher, contents, input_ids, of_tokens))
    writer.seal()
    return contents


def some_ids(vocabulary: int = 61, lengths: list[int] = LENGTHS["train"]) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(3, vocabulary, n) for n in lengths]


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_every_example_comes_back_as_it_was_written(settings: dict, tmp_path: Path) -> None:
    content = write(tmp_path, settings)
    store = StoreReader(tmp_path / "manifest.json")
    for split, lengths in LENGTHS.items():
        packing = Packing.pack(lengths, SHARD_TOKENS)
        for example, length in enumerate(lengths):
            shard = int(packing.shard[example])
            first = int(packing.tokens.start[example]) - SHARD_TOKENS * shard
            read, written = store.read(split, example), content[split, shard]
            for name, facts in zip(read.info._fields, read.info, strict=True):
                assert torch.equal(facts, getattr(written.info, name)[first : first + length])
            for tensor, decoded, block in zip(("keys", "values"), read.kv, written.kv, strict=True):
                exact = block[first : first + length].float()
                assert decoded.shape == (length, *exact.shape[1:])
                if settings["kind"] == "bf16":
                    assert torch.equal(decoded.float(), exact)
                elif settings["kind"] == "int8":
                    spread = block.float().amax(0) - block.float().amin(0)
                    assert ((decoded - exact).abs() <= spread / 255 * 0.51 + 1e-5).all()
                else:
                    mean = store.mean[tensor]
                    cosine = torch.nn.functional.cosine_similarity(decoded - mean, exact - mean, dim=-1)
                    assert cosine.mean() > 0.97


def test_examples_never_cross_a_shard_and_none_is_lost() -> None:
    packing = Packing.pack(LENGTHS["train"], 128)
    start, length = packing.tokens.start, packing.tokens.length
    assert (start // 128 == (start + length - 1) // 128).all()
    assert sorted(index for shard in range(packing.shards) for index in packing.members(shard)) == list(range(7))
    with pytest.raises(UserError, match=r"raise kv\.shard_tokens"):
        Packing.pack([10, 200], 128)


def test_rows_of_another_axis_stay_within_their_shard() -> None:
    packing = Packing.pack(LENGTHS["train"], 128)
    answers = [3, 70, 1, 0, 9, 2, 5]
    rows = packing.axis(answers, multiple_of=64)
    assert rows.per_shard % 64 == 0
    assert (rows.start // rows.per_shard == packing.shard).all()
    taken = [row for start, n in zip(rows.start, answers, strict=True) for row in range(start, start + n)]
    assert len(set(taken)) == sum(answers)


def test_batches_hold_each_example_once_within_the_token_budget() -> None:
    packing = Packing.pack(LENGTHS["train"], 128)
    for shard in range(packing.shards):
        found = batches(packing.members(shard), LENGTHS["train"], 100)
        assert sorted(example for batch in found for example in batch) == packing.members(shard).tolist()
        assert all(len(b) == 1 or len(b) * max(LENGTHS["train"][i] for i in b) <= 100 for b in found)


def test_reading_one_example_of_gsm8k_length_costs_at_most_1_4_times_its_bytes() -> None:
    lengths = np.random.default_rng(0).normal(182, 40, 2000).clip(60, 500).astype(int).tolist()
    packing = Packing.pack(lengths, 16384)
    chunk = chunk_tokens(Geometry(28, 2, 128), 16384)
    first = packing.tokens.start // chunk
    last = -(-(packing.tokens.start + packing.tokens.length) // chunk)
    assert ((last - first) * chunk).sum() / sum(lengths) <= 1.4


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_all_arrays_of_a_token_have_their_chunks_at_the_same_tokens(settings: dict, tmp_path: Path) -> None:
    write(tmp_path, settings)
    arrays = StoreReader(tmp_path / "manifest.json").contents.arrays
    group = open_group(tmp_path / "store.zarr", "r")["train"]
    chunks = {group[name].chunks[0] * spec.tokens_per_row for name, spec in arrays.items()}
    assert chunks == {chunk_tokens(GEOMETRY, SHARD_TOKENS)}


def test_channel_statistics_are_those_of_the_training_tokens(tmp_path: Path) -> None:
    content = write(tmp_path, BF16)
    store = StoreReader(tmp_path / "manifest.json")
    values = torch.cat([shard.kv.values for (split, _), shard in content.items() if split == "train"]).double()
    torch.testing.assert_close(store.mean["values"].double(), values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(store.std["values"].double(), values.std(0, correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_a_resumed_store_has_the_same_bytes(settings: dict, tmp_path: Path) -> None:
    write(tmp_path / "whole" / "store", settings)
    write(tmp_path / "resumed" / "store", settings, only=2)
    litter = tmp_path / "resumed" / "store" / "shards" / "train-00002.json.x1.partial"
    litter.write_bytes(b"half a record")
    write(tmp_path / "resumed" / "store", settings)
    assert files(tmp_path / "whole" / "store") == files(tmp_path / "resumed" / "store")


def test_a_damaged_shard_is_put_aside_and_written_again_and_the_others_are_kept(tmp_path: Path) -> None:
    write(tmp_path, INT8)
    before = files(tmp_path)
    shard = tmp_path / "store.zarr/train/values/codes/c/1/0/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[40] ^= 1
    shard.write_bytes(damaged)
    assert open_writer(tmp_path, INT8).pending() == [("train", 1)]
    assert (tmp_path / "quarantine/1/store.zarr/train/values/codes/c/1/0/0/0").read_bytes() == damaged
    write(tmp_path, INT8)
    after = {name: data for name, data in files(tmp_path).items() if not name.startswith("quarantine")}
    assert after == before


def test_a_disk_without_room_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, INT8, only=1)
    before = files(tmp_path)
    monkeypatch.setattr("kava.cache.writer.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    writer = open_writer(tmp_path, INT8)
    with pytest.raises(UserError, match="finished shards are kept"):
        writer.check_room(writer.pending())
    assert files(tmp_path) == before


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_stored_kv_equals_the_teacher_run_live_on_the_same_batch(settings: dict, tmp_path: Path, tinystories) -> None:
    """The real path: trained weights, NF4 by bitsandbytes, bf16 compute, un-rotated keys."""
    from kava.models import load_teacher

    source = {"model": str(tinystories), "revision": None, "quantization": "nf4", "dtype": "bfloat16"}
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
        selection = key(BF16, select=select)["select"]
        on_reading = StoreReader(whole / "manifest.json", select=selection)
        at_extraction = StoreReader(kept / "manifest.json")
        assert on_reading.scope == at_extraction.scope == scope
        for example, x in enumerate(ids):
            read, stored = on_reading.read("train", example), at_extraction.read("train", example)
            rows = min(9, len(x) - 9)
            assert stored.info.position.shape == ((rows,) if scope == "example" else (rows, 3, 2))
            assert torch.equal(stored.info.id, torch.from_numpy(x)[stored.info.position])
            for a, b in zip((*read.kv, *read.info), (*stored.kv, *stored.info), strict=True):
                assert torch.equal(a, b)
            assert torch.isfinite(at_extraction.scores("train", example).importance).all()


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST)
def test_a_lossy_codec_does_not_change_what_is_selected_on_reading(codec: dict, tmp_path: Path) -> None:
    teacher, ids = tiny_model("llama", max_position_embeddings=128), some_ids()
    fill_store(tmp_path / "exact", teacher, ids, BF16, signals=SCORES)
    fill_store(tmp_path / "lossy", teacher, ids, codec, signals=SCORES)
    select = key(BF16, select={"kind": "rkv", "budget": 7})["select"]
    stores = [StoreReader(tmp_path / name / "manifest.json", select=select) for name in ("exact", "lossy")]
    for example in range(len(ids)):
        exact, lossy = (store.read("train", example).info.position for store in stores)
        assert torch.equal(exact, lossy)


def test_a_selection_that_the_store_cannot_serve_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "full", INT8)
    rkv = key(INT8, select={"kind": "rkv", "budget": 8})["select"]
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


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST)
def test_kv_that_is_not_finite_stops_extraction(codec: dict, tmp_path: Path) -> None:
    writer = open_writer(tmp_path, codec)
    broken = content(writer, "train", 0)
    broken.kv.keys[3, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the teacher's keys are not finite"):
        writer.write_shard("train", 0, broken)
    assert ("train", 0) in writer.pending()


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


def test_a_signal_that_was_not_stored_is_named(tmp_path: Path) -> None:
    write(tmp_path, INT8)
    with pytest.raises(UserError, match=r"the store has no hidden; set kv\.signals"):
        StoreReader(tmp_path / "manifest.json").hidden_states("train", 0)


def test_an_example_without_reasoning_is_named_before_the_teacher_runs() -> None:
    contents = Contents(key(INT8, select={"kind": "uniform", "budget": 4}), GEOMETRY, 32)
    only_prompt = {"train": [np.zeros(9, np.int8)]}
    with pytest.raises(UserError, match="train example 0 has no token that"):
        StoreWriter(Path("unused"), contents, only_prompt)


def test_the_bytes_of_format_2_do_not_change() -> None:
    """Golden bytes: if this fails, readers of existing stores would misread them; raise STORE_FORMAT."""
    geometry = Geometry(1, 2, 2)
    block = (torch.arange(130 * 4).reshape(130, 1, 2, 2) % 37 - 11.0).bfloat16()
    info = TokenInfo(torch.arange(130) % 3, torch.arange(130) % 20, torch.arange(130) % 3)
    parameters = {
        "mean": np.arange(8, dtype=np.float32), "first": np.ones((4, 5), np.float16),
        "exact_ids": np.arange(2, dtype=np.int32), "exact_codes": np.ones((2, 3), np.int8),
        "exact_step": np.full(3, 0.5, np.float32), "usual_ids": np.array([2], np.int32),
        "usual_codes": np.full((1, 5), 7, np.int8), "usual_step": np.full(5, 0.25, np.float32),
        "scale": np.array([1, 2, 4, np.inf], np.float32), "basis/0": np.eye(8, 5, dtype=np.float16),
        "block": np.zeros(5, np.int16), "step": np.array([4, 3, 2, 1, 0.5], np.float32),
        "per_byte": np.array([5, 5, 3, 2, 1], np.uint8),
    }  # fmt: skip
    digests = {}
    for settings in CODECS_UNDER_TEST:
        codec = make_codec(settings, geometry)
        if codec.calibration_tokens:
            codec.load_parameters(parameters, torch.device("cpu"))
        arrays = codec.encode(KvBlock(block, -block), info)
        assert arrays.keys() == codec.arrays.keys()
        joined = b"".join(name.encode() + arrays[name].numpy().tobytes() for name in sorted(arrays))
        decoded = codec.decode(arrays, 0, info)
        joined += b"".join(tensor.float().numpy().tobytes() for tensor in decoded)
        digests[settings["kind"]] = hashlib.sha256(joined).hexdigest()[:16]
    assert digests == {
        "bf16": "43d707ca2313d911",
        "int8": "32347b4ab3d347db",
        "int4": "57b568752f6d4a20",
        "transform": "76df284bb409e025",
    }


def test_all_tokens_are_in_the_manifest(tmp_path: Path) -> None:
    write(tmp_path, INT8)
    manifest = StoreReader(tmp_path / "manifest.json").manifest
    assert manifest["tokens"] == sum(map(sum, LENGTHS.values()))
    assert manifest["examples"] == {split: len(of_split) for split, of_split in segments().items()}
    measured = sum(len(data) for name, data in files(tmp_path).items() if name != "manifest.json")
    assert manifest["bytes"] == measured
