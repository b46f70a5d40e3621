"""Run the teacher over a token set and hand its KV to a store, shard by shard."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.cache.capture import capture
from kava.cache.layout import Packing


def batches_of_shard(packing: Packing, shard: int, batch_tokens: int) -> list[list[int]]:
    """Examples of a shard in batches of like length, each of at most `batch_tokens` padded tokens.

    Padding changes the rounding of low-precision models, so the composition of batches depends on the shard alone
    and is part of the format: a resumed store then equals an uninterrupted one.
    """
    batches: list[list[int]] = []
    for example in sorted(packing.members(shard), key=lambda index: (packing.length[index], index)):
        # Sorted by length, so that this example is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * packing.length[example] <= batch_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches


@torch.inference_mode()
def extract_shard(
    teacher: Any,
    input_ids: list[np.ndarray],
    packing: Packing,
    shard: int,
    batch_tokens: int,
    keys: str,
    on_tokens: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Keys and values of one shard, each `[used_rows, L, H, D]` in the teacher's dtype, on the CPU.

    Parameters
    ----------
    teacher
        The model; its head is not run.
    input_ids
        Ids of every example of the split.
    packing, shard
        Which examples, and where they go.
    batch_tokens
        Padded tokens per forward.
    keys
        `pre_rope` or `post_rope`.
    on_tokens
        Called with the number of tokens after each forward, for progress.
    """
    blocks: list[Tensor] = []
    for batch in batches_of_shard(packing, shard, batch_tokens):
        ids, mask = pad_ids([input_ids[example] for example in batch])
        captured, _ = capture(teacher, ids.to(teacher.device), mask.to(teacher.device), keys)
        for tensor_index, tensor_BLHTD in enumerate(captured):
            on_cpu = tensor_BLHTD.permute(0, 3, 1, 2, 4).cpu()  # [B, T, L, H, D]
            if len(blocks) <= tensor_index:
                blocks.append(on_cpu.new_zeros(packing.used_rows(shard), *on_cpu.shape[2:]))
            for row, example in enumerate(batch):
                first = int(packing.start[example]) - shard * packing.shard_tokens
                length = int(packing.length[example])
                blocks[tensor_index][first : first + length] = on_cpu[row, :length]
        on_tokens(int(mask.sum()))
    return blocks[0], blocks[1]


def pad_ids(examples: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad on the right with id 0; returns ids and mask, int64 `[B, T]`."""
    longest = max(len(ids) for ids in examples)
    ids_BT = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(examples):
        ids_BT[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask_BT[row, : len(ids)] = 1
    return ids_BT, mask_BT
