"""The store gives back what the teacher computed, or says that it cannot."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model

from kava.cache.capture import Geometry, capture, geometry
from kava.cache.codecs import CODECS, make_codec
from kava.cache.extract import batches_of_shard, extract_shard, pad_ids
from kava.cache.layout import Packing, chunk_tokens
from kava.cache.reader import StoreReader
from kava.cache.writer import StoreWriter
from kava.config.schema import Bf16Codec, Int8Codec
from kava.errors import UserError

CODEC_SETTINGS = [Bf16Codec().model_dump(), Int8Codec().model_dump()]
GEOMETRY = Geometry(3, 2, 8)
LENGTHS = {"train": [30, 64, 41, 20, 55, 12, 37], "validation": [25, 33]}


def key(codec: dict) -> dict:
    return {"codec": codec, "shard_tokens": 128, "batch_tokens": 128, "keys": "pre_rope"}


def write(folder: Path, codec: dict, only: int | None = None) -> dict[tuple[str, int], list[torch.Tensor]]:
    """Write a store of random KV whose content depends on the shard alone; returns that content."""
    writer = StoreWriter(folder, key(codec), LENGTHS, GEOMETRY)
    writer.open()
    content = {}
    for number, (split, shard) in enumerate(writer.pending()):
        if number == only:
            return content  # as after a kill
        generator = torch.Generator().manual_seed(len(split) * 100 + shard)
        rows = writer.packings[split].used_rows(shard)
        bias = 100 * torch.randn(1, 3, 2, 8, generator=generator)
        blocks = [(torch.randn(rows, 3, 2, 8, generator=generator) + bias).bfloat16() for _ in range(2)]
        writer.write_shard(split, shard, *blocks)
        content[split, shard] = blocks
    writer.seal()
    return content


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_codec_is_under_test() -> None:
    assert {settings["kind"] for settings in CODEC_SETTINGS} == {codec.kind for codec in CODECS}


@pytest.mark.parametrize("settings", CODEC_SETTINGS)
def test_every_example_comes_back_as_it_was_written(settings: dict, tmp_path: Path) -> None:
    content = write(tmp_path, settings)
    store = StoreReader(tmp_path / "manifest.json")
    for split, lengths in LENGTHS.items():
        packing = Packing.pack(lengths, 128)
        for example, length in enumerate(lengths):
            shard = int(packing.shard[example])
            first = int(packing.start[example]) - 128 * shard
            for read, block in zip(store.read(split, example), content[split, shard], strict=True):
                written = block[first : first + length].float()
                assert read.shape == (length, 3, 2, 8)
                if settings["kind"] == "bf16":
                    assert torch.equal(read.float(), written)
                else:
                    spread = block.float().amax(0) - block.float().amin(0)
                    assert ((read - written).abs() <= spread / 255 * 0.51 + 1e-5).all()


def test_int8_keeps_the_direction_of_biased_keys_after_the_bias_is_removed() -> None:
    varying = torch.randn(512, 4, 2, 32)
    bias = 100 * varying.norm(dim=-1).median() * torch.randn(1, 4, 2, 32).sign()
    codec = make_codec(Int8Codec().model_dump())
    for biased in (varying, varying + bias):
        exact = biased - biased.mean(0)
        decoded = codec.decode(codec.encode(biased), 0, 512)
        cosine = torch.nn.functional.cosine_similarity(decoded - decoded.mean(0), exact, dim=-1)
        assert cosine.mean() > 0.9999


def test_constant_channels_are_exact_in_int8() -> None:
    constant = torch.full((70, 1, 1, 4), 731.25)
    codec = make_codec(Int8Codec().model_dump())
    assert torch.equal(codec.decode(codec.encode(constant), 0, 70), constant)


def test_examples_never_cross_a_shard_and_none_is_lost() -> None:
    packing = Packing.pack(LENGTHS["train"], 128)
    assert (packing.start // 128 == (packing.start + packing.length - 1) // 128).all()
    assert sorted(index for shard in range(packing.shards) for index in packing.members(shard)) == list(range(7))
    with pytest.raises(UserError, match=r"raise kv\.shard_tokens"):
        Packing.pack([10, 200], 128)


def test_batches_of_a_shard_hold_each_example_once_within_the_token_budget() -> None:
    packing = Packing.pack(LENGTHS["train"], 128)
    for shard in range(packing.shards):
        batches = batches_of_shard(packing, shard, 100)
        assert sorted(example for batch in batches for example in batch) == packing.members(shard)
        assert all(len(b) == 1 or len(b) * max(packing.length[b]) <= 100 for b in batches)


def test_reading_one_example_of_gsm8k_length_costs_at_most_1_4_times_its_bytes() -> None:
    lengths = np.random.default_rng(0).normal(182, 40, 2000).clip(60, 500).astype(int).tolist()
    packing = Packing.pack(lengths, 8192)
    chunk = chunk_tokens(Geometry(28, 2, 128), make_codec(Int8Codec().model_dump()), 8192)
    first = packing.start // chunk
    last = -(-(packing.start + packing.length) // chunk)
    assert ((last - first) * chunk).sum() / sum(lengths) <= 1.4


def test_channel_statistics_are_those_of_the_training_tokens(tmp_path: Path) -> None:
    content = write(tmp_path, Bf16Codec().model_dump())
    store = StoreReader(tmp_path / "manifest.json")
    values = torch.cat([blocks[1] for (split, _), blocks in content.items() if split == "train"]).double()
    torch.testing.assert_close(store.mean["values"].double(), values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(store.std["values"].double(), values.std(0, correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", CODEC_SETTINGS)
def test_a_resumed_store_has_the_same_bytes(settings: dict, tmp_path: Path) -> None:
    write(tmp_path / "whole" / "store", settings)
    write(tmp_path / "resumed" / "store", settings, only=2)
    litter = tmp_path / "resumed" / "store" / "store.zarr" / "train" / "c.0123.partial"
    litter.write_bytes(b"half a chunk")
    write(tmp_path / "resumed" / "store", settings)
    assert files(tmp_path / "whole" / "store") == files(tmp_path / "resumed" / "store")


def test_a_damaged_shard_is_written_again_and_the_others_are_kept(tmp_path: Path) -> None:
    write(tmp_path, Int8Codec().model_dump())
    before = files(tmp_path)
    shard = tmp_path / "store.zarr/train/values/codes/c/1/0/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[40] ^= 1
    shard.write_bytes(damaged)
    writer = StoreWriter(tmp_path, key(Int8Codec().model_dump()), LENGTHS, GEOMETRY)
    assert writer.pending() == [("train", 1)]
    write(tmp_path, Int8Codec().model_dump())
    assert files(tmp_path) == before


def test_a_flipped_bit_is_an_error_and_not_data(tmp_path: Path) -> None:
    write(tmp_path, Bf16Codec().model_dump())
    shard = tmp_path / "store.zarr/train/keys/bits/c/0/0/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 4
    shard.write_bytes(damaged)
    with pytest.raises(UserError, match="train/keys/bits cannot be read"):
        StoreReader(tmp_path / "manifest.json").read("train", 0)


def test_a_disk_without_room_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, Int8Codec().model_dump(), only=1)
    before = files(tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("kava.cache.writer.shutil.disk_usage", lambda _: usage)
    writer = StoreWriter(tmp_path, key(Int8Codec().model_dump()), LENGTHS, GEOMETRY)
    with pytest.raises(UserError, match="finished shards are kept"):
        writer.open()
    assert files(tmp_path) == before


@pytest.mark.parametrize("settings", CODEC_SETTINGS)
def test_stored_kv_equals_the_teacher_run_live_on_the_same_batch(settings: dict, tmp_path: Path, tinystories) -> None:
    """The real path: trained weights, NF4 by bitsandbytes, bf16 compute, un-rotated keys."""
    from kava.models import load_teacher

    source = {"model": str(tinystories), "revision": None, "quantization": "nf4", "dtype": "bfloat16"}
    teacher = load_teacher(source, torch.device("cpu"))
    ids = [np.random.default_rng(n).integers(3, 2000, n) for n in LENGTHS["train"]]
    lengths = {"train": [len(x) for x in ids], "validation": [len(x) for x in ids[:2]]}
    writer = StoreWriter(tmp_path, key(settings), lengths, geometry(teacher.config))
    writer.open()
    for split, shard in writer.pending():
        packing = writer.packings[split]
        writer.write_shard(split, shard, *extract_shard(teacher, ids, packing, shard, 128, "pre_rope", lambda _: None))
    writer.seal()
    store = StoreReader(tmp_path / "manifest.json")
    packing = writer.packings["train"]
    for shard in range(packing.shards):
        for batch in batches_of_shard(packing, shard, 128):
            with torch.inference_mode():
                live, _ = capture(teacher, *pad_ids([ids[example] for example in batch]))
            for row, example in enumerate(batch):
                for stored, tensor in zip(store.read("train", example), live, strict=True):
                    expected = tensor[row].permute(2, 0, 1, 3)[: packing.length[example]]
                    if settings["kind"] == "bf16":
                        assert torch.equal(stored, expected)
                    else:
                        cosine = torch.nn.functional.cosine_similarity(stored, expected.float(), dim=-1)
                        assert cosine.mean() > 0.9999


def test_extraction_in_batches_equals_one_by_one_in_fp32() -> None:
    teacher = tiny_model("llama", max_position_embeddings=128)
    ids = [np.random.default_rng(n).integers(3, 61, n) for n in LENGTHS["train"]]
    packing = Packing.pack([len(x) for x in ids], 512)
    together = extract_shard(teacher, ids, packing, 0, 512, "pre_rope", lambda _: None)
    alone = extract_shard(teacher, ids, packing, 0, 1, "pre_rope", lambda _: None)
    assert len(batches_of_shard(packing, 0, 512)) < len(batches_of_shard(packing, 0, 1)) == len(ids)
    for batched, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batched, single, atol=1e-6, rtol=0)


def test_the_bytes_of_format_1_do_not_change() -> None:
    """Golden bytes: if this fails, readers of existing stores would misread them; raise STORE_FORMAT."""
    block = (torch.arange(130 * 4).reshape(130, 1, 2, 2) % 37 - 11.0).bfloat16()
    digests = {}
    for settings in CODEC_SETTINGS:
        arrays = make_codec(settings).encode(block)
        joined = b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))
        digests[settings["kind"]] = hashlib.sha256(joined).hexdigest()[:16]
    assert digests == {"bf16": "62104cc612929597", "int8": "7704f01f3527a4d0"}


def test_a_missing_shard_is_an_error_and_not_nan(tmp_path: Path) -> None:
    write(tmp_path, Int8Codec().model_dump())
    (tmp_path / "store.zarr/train/keys/scale/c/0/0/0/0").unlink()
    with pytest.raises(UserError, match="keys of train example 0 are not finite"):
        StoreReader(tmp_path / "manifest.json").read("train", 0)
