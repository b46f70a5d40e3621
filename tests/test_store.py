"""The store gives back what was written, or says that it cannot."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from parsed import codec_of
from store_fixtures import (
    BF16,
    CODECS_UNDER_TEST,
    GEOMETRY,
    INT8,
    LENGTHS,
    SHARD_TOKENS,
    content,
    files,
    open_writer,
    segments,
    write,
)  # fmt: skip

from kava.errors import UserError
from kava.kv import Geometry, KeysValues
from kava.store.codecs import TokenInfo
from kava.store.layout import Packing, chunk_tokens, open_group
from kava.store.reader import StoreReader


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
    monkeypatch.setattr("kava.store.writer.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    writer = open_writer(tmp_path, INT8)
    with pytest.raises(UserError, match="finished shards are kept"):
        writer.check_room(writer.pending())
    assert files(tmp_path) == before


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST)
def test_kv_that_is_not_finite_stops_extraction(codec: dict, tmp_path: Path) -> None:
    writer = open_writer(tmp_path, codec)
    broken = content(writer, "train", 0)
    broken.kv.keys[3, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the teacher's keys are not finite"):
        writer.write_shard("train", 0, broken)
    assert ("train", 0) in writer.pending()


def test_a_signal_that_was_not_stored_is_named(tmp_path: Path) -> None:
    write(tmp_path, INT8)
    with pytest.raises(UserError, match=r"the store has no hidden; set kv\.signals"):
        StoreReader(tmp_path / "manifest.json").hidden_states("train", 0)


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
        codec = codec_of(settings, geometry)
        if codec.calibration_tokens:
            codec.load_parameters(parameters, torch.device("cpu"))
        arrays = codec.encode(KeysValues(block, -block), info)
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
