"""Where a stage runs, how much memory it may take there, and how much it took."""

import resource
import sys

import torch

from kava.config.job import Runtime
from kava.errors import UserError

GIB = 2**30
# Of the budget, what torch's allocator may not have: the CUDA context, paged optimizer states, other programs.
OUTSIDE_ALLOCATOR = GIB


def choose_device(name: str, part: int | None = None) -> torch.device:
    """`auto` takes the GPU if there is one; parts of a job, counted from 1, take the GPUs in turn."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda, but torch sees no GPU; install the CUDA driver or set device: cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda") if part is None else torch.device("cuda", (part - 1) % torch.cuda.device_count())


def use_device(runtime: Runtime, part: int | None = None) -> torch.device:
    """`choose_device`, with the GPU's allocator held to the budget less `OUTSIDE_ALLOCATOR`."""
    device = choose_device(runtime.device, part)
    if device.type == "cuda":
        # With an index: threads have current devices of their own, and tensors say theirs.
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        allowed = runtime.vram_budget_gib * GIB - OUTSIDE_ALLOCATOR
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    return device


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the GPU's allocator on CUDA, resident set otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def device_memory_mib(device: torch.device) -> float | None:
    """Memory of the whole GPU that is taken now, in MiB, by whatever program; None where NVML does not say."""
    if device.type != "cuda":
        return None
    from pynvml import NVMLError

    try:
        return torch.cuda.device_memory_used(device) / 2**20
    except NVMLError:
        return None
