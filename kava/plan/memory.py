"""Bytes that a stage takes on the GPU at its peak, part by part, and the budget that they have to fit."""

from collections.abc import Iterable
from dataclasses import dataclass

from kava.device import GIB, OUTSIDE_ALLOCATOR
from kava.plan.trace import Traced

# What a process takes of the GPU before torch's allocator: driver, kernels, library handles.
CUDA_CONTEXT = round(0.45 * GIB)
# cuBLAS takes it from the allocator once per stream.
CUBLAS_WORKSPACE = 8_519_680
# bitsandbytes (0.50): states of smaller tensors stay fp32, those of 8 bits have one fp32 maximum per block, and tensors
# from a size on are paged.
SMALLEST_8BIT, BLOCK, SMALLEST_PAGED = 4096, 256, 100_000
PARTS = (
    "weights",
    "autocast copies",
    "gradients",
    "buckets",
    "optimizer states",
    "activations",
    "logits",
    "projector",
    "normal equations",
    "kv cache",
    "batch",
    "temporary",
    "cuda context",
)


@dataclass(frozen=True)
class StageMemory:
    """Peak of one stage."""

    parts: dict[str, int]  # name of `PARTS` → bytes, those that live at the peak
    paged: int = 0  # bytes of optimizer states among them that lie outside torch's allocator and may be evicted

    @property
    def peak(self) -> int:
        """Bytes in all, the CUDA context included."""
        return sum(self.parts.values())

    @property
    def allocator(self) -> int:
        """Bytes that torch's allocator gives out."""
        return self.peak - self.paged - self.parts["cuda context"]

    def fits(self, budget_gib: float) -> bool:
        """Whether all of it fits the budget, and what the allocator gives out fits its cap."""
        return self.peak <= budget_gib * GIB and self.allocator <= budget_gib * GIB - OUTSIDE_ALLOCATOR

    def lack(self, budget_gib: float) -> str:
        """The number that breaks the budget, as the end of a sentence, with the largest parts."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        of_which = ", ".join(f"{name} {count / GIB:.2f}" for name, count in largest)
        cap = budget_gib - OUTSIDE_ALLOCATOR / GIB
        if self.allocator > cap * GIB:
            what = f"{self.allocator / GIB:.2f} GiB of torch's allocator, which is capped at {cap:g} GiB"
        else:
            what = f"{self.peak / GIB:.2f} GiB, with CUDA context and paged states"
        return f"needs {what} (vram_budget_gib: {budget_gib:g}); the largest parts are {of_which}"


def of_training(traced: Traced, optimizer: str, ahead: int, processes: int = 1, equations: int = 0) -> StageMemory:
    """Peak of a phase: that of a micro-batch's forward and backward, or of the optimizer's step, whichever is larger.

    `ahead` batches lie on the GPU beside the one in use; of several processes, each has buckets as large as all
    gradients, in which they are exchanged; `equations` are the bytes of what a closed form gathers and solves.
    """
    states = {name: state_bytes(optimizer, sizes) for name, sizes in traced.trained.items()}
    held = {name: traced.parts.get(name, 0) for name in ("weights", "gradients", "projector", "batch")}
    held["batch"] *= 1 + ahead
    held["normal equations"] = equations
    if processes > 1:
        held["buckets"] = 4 * sum(sum(sizes) for sizes in traced.trained.values())
    held["optimizer states"] = states["student"][0]
    held["projector"] += states["projector"][0]
    within = {name: traced.parts.get(name, 0) for name in ("autocast copies", "activations", "logits", "temporary")}
    # Student and projector are groups of their own, which are stepped one after the other.
    stepping = max(step_buffers(optimizer, sizes) for sizes in traced.trained.values())
    moment = within if sum(within.values()) >= stepping else {"temporary": stepping}
    return _complete(held | moment, sum(paged for _, paged in states.values()))


def of_forward(parts: dict[str, int]) -> StageMemory:
    """Peak of a stage without gradients, from the parts that live in it."""
    return _complete(parts, 0)


def _complete(parts: dict[str, int], paged: int) -> StageMemory:
    temporary = parts.get("temporary", 0) + CUBLAS_WORKSPACE
    whole = parts | {"temporary": temporary, "cuda context": CUDA_CONTEXT}
    return StageMemory({name: whole[name] for name in PARTS if whole.get(name)}, paged)


def state_bytes(optimizer: str, sizes: Iterable[int]) -> tuple[int, int]:
    """Bytes of both moments of trained tensors of so many elements: in all, and of those that are paged.

    Paged states of `paged_adamw_8bit` are on the GPU while it has room, outside torch's allocator.
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
