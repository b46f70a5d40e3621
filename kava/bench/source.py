"""Teacher KV that is held in memory once, and from there goes into one store after another."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from kava.config.kv import KvStore
from kava.data.tokens import Segment
from kava.kv import Geometry, KeysValues
from kava.models.placement import resident
from kava.store.codecs import Calibration, TokenInfo
from kava.store.contents import Contents
from kava.store.layout import STATISTICS, Packing
from kava.store.shard import ShardContent
from kava.teacher.extractor import Extractor, OnTokens, calibration_examples

# Of the tokens that are measured; the transform has not seen them.
HELD_OUT: Final = 1 / 16

# Made-up KV: tokens of an example as in GSM8K, ids, directions that half of the variance lies in, bias of keys in σ.
MEAN_LENGTH, LENGTH_DEVIATION = 182, 60
VOCABULARY, DIRECTIONS, KEY_BIAS = 2000, 64, 10.0

Examples = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Source:
    """KV of all tokens of some examples, example after example."""

    geometry: Geometry
    segments: Examples  # split → segment of every token of every example
    kv: dict[str, KeysValues]  # split → fp32 `[T, L, H, D]`
    info: dict[str, TokenInfo]
    ids: Tensor  # every token id, ascending, and the first layer's KV of each, as in `Calibration`
    first_layer: KeysValues

    @property
    def tokens(self) -> int:
        return sum(len(kv.keys) for kv in self.kv.values())

    @property
    def raw_bytes(self) -> int:
        """Size as plain bf16."""
        return self.tokens * 2 * self.geometry.channels * 2

    def starts(self, split: str) -> list[int]:
        """First token of each example, and the end of the last."""
        return [0, *accumulate(len(of_example) for of_example in self.segments[split])]

    def part(self, split: str, rows: slice | Tensor) -> tuple[KeysValues, TokenInfo]:
        """KV and facts of some tokens of a split."""
        kv, info = self.kv[split], self.info[split]
        return KeysValues(*(tensor[rows] for tensor in kv)), TokenInfo(*(tensor[rows] for tensor in info))

    def mean(self) -> KeysValues:
        """Channel means over all tokens, float64 `[L, H, D]`."""
        of_tensor = zip(*self.kv.values(), strict=True)
        totals = (torch.stack([x.sum(0, dtype=torch.float64) for x in blocks]).sum(0) for blocks in of_tensor)
        return KeysValues(*(total / self.tokens for total in totals))

    def shard(self, split: str, shard: int, packing: Packing) -> ShardContent:
        """What a store's writer gets, as from the teacher."""
        members, starts = packing.members(shard), self.starts(split)
        return ShardContent(*self.part(split, slice(starts[members[0]], starts[members[-1] + 1])), {})

    def calibration(self, wanted: int) -> Calibration:
        """The slice that a codec would learn from, chosen as `extract` chooses it."""
        starts = self.starts(STATISTICS)
        chosen = calibration_examples(np.diff(starts), wanted)
        rows = torch.from_numpy(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen]))
        return Calibration(*self.part(STATISTICS, rows), self.ids, self.first_layer, starts[-1])


def first_tokens(input_ids: Examples, segments: Examples, tokens: int) -> tuple[Examples, Examples]:
    """The first examples of the training split and of the held-out one, `tokens` in all or a few less."""
    ids, of_segments = {}, {}
    for split, share in ((STATISTICS, 1 - HELD_OUT), ("validation", HELD_OUT)):
        end = np.cumsum([len(x) for x in input_ids[split]])
        kept = max(1, int((end <= tokens * share).sum()))
        ids[split], of_segments[split] = input_ids[split][:kept], segments[split][:kept]
    return ids, of_segments


def read_teacher(
    teacher: Any,
    geometry: Geometry,
    input_ids: Examples,
    segments: Examples,
    how: dict[str, Any] | None = None,
    on_tokens: OnTokens = lambda _: None,
) -> Source:
    """Run the teacher once over examples of the splits `train` and `validation`.

    `how` has `keys` and `batch_tokens` as in `kv` of the configuration (None for the defaults); `on_tokens` is called
    with the number of tokens after each forward, for progress.
    """
    longest = max(sum(len(x) for x in of_split) for of_split in segments.values())
    one_shard = {"codec": {"kind": "bf16"}, "shard_tokens": -(-longest // 64) * 64}
    contents = Contents(KvStore.model_validate(one_shard | (how or {})), geometry, teacher.config.hidden_size)
    extractor = Extractor(resident(teacher), contents, input_ids, segments, on_tokens)
    kv, info = {}, {}
    for split, of_split in segments.items():
        packing, axes = contents.pack(of_split, split)
        (content,) = extractor.shards([(split, 0)], {split: packing}, {split: axes})
        kv[split], info[split] = KeysValues(*(x.float() for x in content.kv)), content.info
        if split == STATISTICS:
            learnt = extractor.calibration(packing)  # for its first layer; the slice is of one example here
    first_layer = KeysValues(*(x.float() for x in learnt.first_layer))
    return Source(geometry, segments, kv, info, learnt.ids, first_layer)


def synthetic(geometry: Geometry, tokens: int, seed: int = 0) -> Source:
    """Made-up KV of a geometry: biased channels, half of the variance in a few directions and half white.

    The first layer is a function of the token id, as a real one is before RoPE.
    """
    generator = torch.Generator().manual_seed(seed)
    row = (geometry.layers, geometry.kv_heads, geometry.head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    bias = (KEY_BIAS * normal(*row), normal(*row))
    directions = [normal(DIRECTIONS, geometry.channels) / DIRECTIONS**0.5 for _ in KeysValues._fields]
    table = [b[:1] + normal(VOCABULARY, 1, *row[1:]) for b in bias]
    rng = np.random.default_rng(seed)
    segments, kv, info = {}, {}, {}
    for split, share in ((STATISTICS, 1 - HELD_OUT), ("validation", HELD_OUT)):
        lengths = rng.normal(MEAN_LENGTH, LENGTH_DEVIATION, max(1, round(share * tokens / MEAN_LENGTH)))
        segments[split] = [np.full(int(n), Segment.REASONING, np.int8) for n in lengths.clip(64, 512)]
        position = torch.cat([torch.arange(len(x)) for x in segments[split]])
        ids = (VOCABULARY * torch.rand(len(position), generator=generator) ** 3).long()  # some are frequent
        strength = normal(len(ids), DIRECTIONS)
        blocks = []
        for tensor in range(2):
            block = (strength @ directions[tensor]).view(-1, *row).add_(normal(len(ids), *row)).mul_(0.5**0.5)
            block += bias[tensor]
            block[:, :1] = table[tensor][ids]
            blocks.append(block)
        kv[split] = KeysValues(*blocks)
        info[split] = TokenInfo(ids, position, torch.full_like(ids, int(Segment.REASONING)))
    known = torch.unique(torch.cat([x.id for x in info.values()]))
    return Source(geometry, segments, kv, info, known, KeysValues(*(x[known] for x in table)))
