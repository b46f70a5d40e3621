"""Small stores: of random KV, written shard by shard as extraction does, and of a teacher by extraction itself."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kava.config.kv import KvStore
from kava.kv import Geometry, KeysValues
from kava.models.capture import geometry
from kava.models.placement import Placed, resident
from kava.store.codecs import CODECS, Calibration, TokenInfo
from kava.store.contents import Contents
from kava.store.shard import ShardContent
from kava.store.writer import StoreWriter
from kava.teacher.extractor import Extractor
from kava.teacher.fill import fill

GEOMETRY = Geometry(3, 2, 8)
LENGTHS = {"train": [30, 64, 41, 20, 55, 12, 37], "validation": [25, 33]}
SHARD_TOKENS = 128
IDS = 40
CODECS_UNDER_TEST: list[dict[str, Any]] = [
    {"kind": "bf16"},
    {"kind": "int8"},
    {"kind": "int4"},
    {"kind": "transform", "target_cos": 0.98, "calibration_tokens": 1024},
]
assert [settings["kind"] for settings in CODECS_UNDER_TEST] == [codec.kind for codec in CODECS]
INT8, BF16 = {"kind": "int8"}, {"kind": "bf16"}


def key(codec: dict[str, Any], **changes: Any) -> KvStore:
    """Settings of a store as the configuration would make them."""
    settings = {"codec": codec, "shard_tokens": SHARD_TOKENS, "batch_tokens": SHARD_TOKENS} | changes
    return KvStore.model_validate(settings)


def segments(lengths: dict[str, list[int]] = LENGTHS) -> dict[str, list[np.ndarray]]:
    """A fifth of each example is prompt, the last four tokens are the answer."""
    return {
        split: [np.repeat([0, 1, 2], [n // 5, n - n // 5 - 4, 4]) for n in of_split]
        for split, of_split in lengths.items()
    }


def random_kv(tokens: int, seed: int, geometry: Geometry = GEOMETRY) -> KeysValues:
    """bf16 KV of low rank; keys have a bias per channel that is large beside what varies."""
    shared = torch.Generator().manual_seed(17)
    own = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    blocks = []
    for size in (20, 0.2):
        directions = torch.randn(6, *shape, generator=shared)
        bias = size * torch.randn(1, *shape, generator=shared)
        varying = torch.einsum("tr,rlhd->tlhd", torch.randn(tokens, 6, generator=own), directions)
        blocks.append((varying + 0.1 * torch.randn(tokens, *shape, generator=own) + bias).bfloat16())
    return KeysValues(*blocks)


def content(writer: StoreWriter, split: str, shard: int) -> ShardContent:
    """Content of a shard that depends on its name alone."""
    packing = writer.packings[split]
    members = packing.members(shard)
    rows = packing.tokens.used(members)
    of_examples = [segments()[split][example] for example in members]
    position = torch.cat([torch.arange(len(of_example)) for of_example in of_examples])
    segment = torch.from_numpy(np.concatenate(of_examples))
    return ShardContent(
        random_kv(rows, 100 * len(split) + shard), TokenInfo((7 * position + shard) % IDS, position, segment), {}
    )


def open_writer(folder: Path, codec: dict[str, Any], **changes: Any) -> StoreWriter:
    """A writer that is ready for shards, calibrated if its codec wants it."""
    settings = key(codec, **changes)
    writer = StoreWriter(folder, Contents(settings, GEOMETRY, 32), segments())
    if writer.open():
        writer.codec.calibrate(calibration(1024))
        with writer.exclusive():
            writer.write_parameters()
    return writer


def calibration(tokens: int) -> Calibration:
    ids = torch.arange(tokens) % IDS
    info = TokenInfo(ids, torch.arange(tokens) % 50, torch.zeros(tokens, dtype=torch.int64))
    first = KeysValues(*(tensor[:IDS, :1] for tensor in random_kv(tokens, 1)))
    return Calibration(random_kv(tokens, 1), info, torch.arange(IDS), first, 400)


def write(
    folder: Path, codec: dict[str, Any], only: int | None = None, **changes: Any
) -> dict[tuple[str, int], ShardContent]:
    """Write and seal a store; returns what was put in. With `only`, stop after so many shards, as after a kill."""
    writer = open_writer(folder, codec, **changes)
    written = {}
    for number, (split, shard) in enumerate(writer.pending()):
        if number == only:
            return written
        written[split, shard] = content(writer, split, shard)
        writer.write_shard(split, shard, written[split, shard])
    writer.seal()
    return written


def fill_store(
    folder: Path, teacher: Any, ids: list[np.ndarray], codec: dict, no_tokens: np.ndarray | None = None, **changes: Any
) -> Contents:
    """Extract a store of two splits by the real path, of a model or of one that is placed; returns its contents."""
    placed = teacher if isinstance(teacher, Placed) else resident(teacher)
    teacher = placed.model
    settings = key(codec, **changes)
    input_ids = {"train": ids, "validation": ids[:2]}
    of_tokens = {split: [np.repeat([0, 1, 2], [5, len(x) - 9, 4]) for x in x_of] for split, x_of in input_ids.items()}
    contents = Contents(settings, geometry(teacher.config), teacher.config.hidden_size)
    writer = StoreWriter(folder, contents, of_tokens)
    fill(writer, lambda _: Extractor(placed, contents, input_ids, of_tokens, no_tokens=no_tokens))
    writer.seal()
    return contents


def some_ids(vocabulary: int = 61, lengths: list[int] = LENGTHS["train"]) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(3, vocabulary, n) for n in lengths]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts
    }
