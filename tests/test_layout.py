"""Where nothing was written nothing is read, and every row of every shard is in its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parsed import selector_of
from store_fixtures import (
    BF16,
    CODECS_UNDER_TEST,
    GEOMETRY,
    INT8,
    LENGTHS,
    calibration,
    content,
    key,
    open_writer,
    segments,
    write,
)  # fmt: skip

from kava.errors import UserError
from kava.kv import TENSORS, Geometry, KeysValues
from kava.store.codecs import TokenInfo
from kava.store.contents import Contents
from kava.store.layout import Packing, open_group, shard_files
from kava.store.reader import StoreReader
from kava.store.shard import ShardContent
from kava.store.writer import StoreWriter

SIGNALS = {
    "importance": {"kind": "rkv"}, "hidden_states": True, "token_hidden_states": [0, 2], "topk_logits": 3,
}  # fmt: skip


def is_poison(rows: np.ndarray, name: str) -> bool:
    """Whether rows cannot pass for data: no number, id or symbol; codes are zeros, under a scale that is no number."""
    if name.endswith(("bits", "hidden")):
        return bool(torch.from_numpy(np.ascontiguousarray(rows)).view(torch.bfloat16).isnan().all())
    if rows.dtype.kind == "f":
        return bool(np.isnan(rows).all())
    if name.startswith("components/"):
        return bool((rows == 255).all())
    return bool((rows == (0 if name.endswith("codes") else -1)).all())


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST)
def test_what_was_never_written_reads_as_poison(codec: dict[str, Any], tmp_path: Path) -> None:
    settings = key(codec, signals=SIGNALS)
    writer = open_writer(tmp_path, codec, signals=SIGNALS)
    assert writer.contents.settings == settings
    group = open_group(tmp_path / "store.zarr", "r")
    for split in LENGTHS:
        for name in writer.contents.arrays:
            assert is_poison(group[split][name][:], name), f"{split}/{name}"
    for tensor in TENSORS:
        assert np.isnan(group["train"][tensor]["moments"][:]).all()


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST)
def test_rows_behind_the_last_example_of_a_shard_read_as_poison_and_are_refused(
    codec: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, codec)
    store = StoreReader(tmp_path / "manifest.json")
    packing = Packing.pack(LENGTHS["train"], 128)
    used = packing.tokens.used(packing.members(0))
    assert used < 128
    group = open_group(tmp_path / "store.zarr", "r")["train"]
    for name, spec in store.contents.arrays.items():
        rows = group[name][-(-used // spec.tokens_per_row) : 128 // spec.tokens_per_row]
        assert is_poison(rows, name) or spec.tokens_per_row > 1, name
    store._split("train")._index["token"][0] = (used - 1, 2)  # as if an index were wrong
    with pytest.raises(UserError, match="were never written"):
        store.read("train", 0)


def test_examples_that_fit_a_shard_exactly_fill_it_and_one_more_token_is_refused() -> None:
    packing = Packing.pack([64, 64, 128, 100, 28, 1], 128)
    assert packing.tokens.start.tolist() == [0, 64, 128, 256, 356, 384]
    assert packing.shard.tolist() == [0, 0, 1, 2, 2, 3]
    assert [packing.tokens.used(packing.members(shard)) for shard in range(4)] == [128, 128, 128, 1]
    with pytest.raises(UserError, match="an example of 129 tokens does not fit a shard of 128"):
        Packing.pack([64, 129], 128)


def test_another_axis_has_room_for_the_fullest_shard_wherever_it_is() -> None:
    rows = Packing.pack([100, 100, 100], 128).axis([3, 130, 70], multiple_of=64)
    assert rows.per_shard == 192
    assert rows.start.tolist() == [0, 192, 384]


def test_a_draw_on_reading_is_that_of_its_example(tmp_path: Path) -> None:
    write(tmp_path, INT8)
    select = key(INT8, select={"kind": "random", "budget": 5, "candidates": "all"}).select
    store = StoreReader(tmp_path / "manifest.json", select=select)
    for example, length in enumerate(LENGTHS["train"]):
        expected = selector_of(select).select(np.arange(length), None, example, GEOMETRY)
        assert store.kept("train", example).position.tolist() == expected.tolist()


def store_of(
    folder: Path, blocks: list[KeysValues], lengths: list[int], codec: dict[str, Any], shard_tokens: int
) -> StoreReader:
    """A sealed store of training examples, whose shards hold these blocks."""
    geometry = Geometry(*blocks[0].keys.shape[1:])
    contents = Contents(key(codec, shard_tokens=shard_tokens), geometry, 8)
    writer = StoreWriter(folder, contents, segments({"train": lengths}))
    assert not writer.open()
    for (split, shard), block in zip(writer.shards, blocks, strict=True):
        facts = torch.arange(len(block.keys))
        writer.write_shard(split, shard, ShardContent(block, TokenInfo(facts, facts, facts % 3), {}))
    writer.seal()
    return StoreReader(folder / "manifest.json")


def test_a_shard_that_its_examples_fill_exactly_comes_back_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [
        KeysValues(*(torch.randn(n, 1, 1, 4, generator=generator).bfloat16() for _ in "kv")) for n in (128, 128, 5)
    ]
    store = store_of(tmp_path, blocks, [100, 28, 128, 5], BF16, 128)
    assert list(store.manifest["shards"]) == ["train-00000", "train-00001", "train-00002"]
    whole = [torch.cat([store.read("train", example).kv[i] for example in range(4)]) for i in range(2)]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([block[i] for block in blocks]))


def test_shards_that_are_all_fill_are_there(tmp_path: Path) -> None:
    """Codes of constant KV are zeros, int8's fill value: a file that was left out could not be told from a lost one."""
    constant = KeysValues(*(torch.full((128, 1, 1, 4), 2.5) for _ in "kv"))
    store = store_of(tmp_path, [constant, constant], [128, 128], INT8, 128)
    for shard in range(2):
        for tensor in TENSORS:
            assert (tmp_path / f"store.zarr/train/{tensor}/codes/c/{shard}/0/0/0").is_file()
    assert (store.read("train", 1).kv.keys == 2.5).all()
    (tmp_path / "store.zarr/train/keys/codes/c/1/0/0/0").unlink()
    with pytest.raises(UserError, match="is missing"):
        StoreReader(tmp_path / "manifest.json")


def test_a_shard_longer_than_what_is_encoded_at_a_time_comes_back_in_order_and_its_moments_are_of_all(
    tmp_path: Path,
) -> None:
    tokens = torch.arange(2112).float()
    ramp = KeysValues(
        *(sign * (tokens / 512)[:, None, None, None].expand(-1, 1, 1, 2).contiguous() for sign in (1, -1))
    )
    store = store_of(tmp_path, [ramp], [2000, 112], INT8, 2112)
    for example, start, stop in ((0, 0, 2000), (1, 2000, 2112)):
        torch.testing.assert_close(store.read("train", example).kv.keys, ramp.keys[start:stop], atol=1e-3, rtol=0)
    for tensor, sign in zip(TENSORS, (1, -1), strict=True):
        torch.testing.assert_close(store.mean[tensor].flatten()[0], sign * (tokens / 512).mean())
        torch.testing.assert_close(store.std[tensor].flatten()[0], (tokens / 512).std(correction=0))


def test_a_shard_that_was_coded_with_other_parameters_is_not_taken(tmp_path: Path) -> None:
    """As one of a store of the same key that was calibrated on another machine, where sums round otherwise."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    codec = CODECS_UNDER_TEST[-1]
    write(ours, codec, only=2)
    writer = StoreWriter(theirs, Contents(key(codec), GEOMETRY, 32), segments())
    assert writer.open()
    writer.codec.calibrate(calibration(1024))
    writer.codec.predictor.mean += 0.5  # type: ignore[attr-defined]
    with writer.exclusive():
        writer.write_parameters()
    writer.write_shard("train", 1, content(writer, "train", 1))
    arrays = (f"store.zarr/{name}" for name in shard_files("train", 1, writer.contents.arrays))
    for name in ("shards/train-00001.json", *arrays):
        shutil.copyfile(theirs / name, ours / name)
    again = open_writer(ours, codec)
    assert ("train", 0) not in again.pending()
    assert ("train", 1) in again.pending()


def test_a_file_of_another_shard_is_named_and_not_read_though_its_own_checksums_are_right(tmp_path: Path) -> None:
    blocks = [KeysValues(*(torch.full((128, 1, 1, 4), value) for _ in "kv")) for value in (2.5, 7.5)]
    store_of(tmp_path, blocks, [128, 128], INT8, 128)
    one, other = (tmp_path / f"store.zarr/train/keys/minimum/c/{shard}/0/0/0" for shard in range(2))
    assert one.stat().st_size == other.stat().st_size
    shutil.copyfile(other, one)
    with pytest.raises(UserError, match="shard train-00000: train/keys/minimum/c/0/0/0/0 is damaged or foreign"):
        StoreReader(tmp_path / "manifest.json").read("train", 0)
