"""Bytes of an optimizer: its states, and what its step takes beside them."""

from collections.abc import Iterable

# bitsandbytes (0.50): states of smaller tensors stay fp32, those of 8 bits have one fp32 maximum per block, and tensors
# from a size on are paged.
SMALLEST_8BIT, BLOCK, SMALLEST_PAGED = 4096, 256, 100_000


def state_bytes(optimizer: str, sizes: Iterable[int]) -> tuple[int, int]:
    """Both moments of all trained tensors.

    Parameters
    ----------
    optimizer
        `adamw`, `adamw_8bit` or `paged_adamw_8bit`.
    sizes
        Elements of each trained tensor.

    Returns
    -------
    tuple of int
        Bytes in all, and bytes of those that are paged: on the GPU while it has room, outside torch's allocator.
    """
    total = paged = 0
    for size in sizes:
        if optimizer == "adamw" or size < SMALLEST_8BIT:
            total += 8 * size
            continue
        total += 2 * (size + 4 * -(-size // BLOCK))
        if optimizer == "paged_adamw_8bit" and size >= SMALLEST_PAGED:
            paged += 2 * size
    return total, paged


def step_buffers(optimizer: str, sizes: Iterable[int]) -> int:
    """What the step of a group takes beside states: on a GPU, torch's AdamW roots all its second moments at once."""
    return 4 * sum(sizes) if optimizer == "adamw" else 0
