"""Peak memory of what a process does, on a GPU or on a CPU."""

import threading
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Final, Self

import torch

from kava.bench.live import LiveTensors

GIB: Final = 1 << 30
MIB: Final = 1 << 20
# Of the budget, what torch's allocator may not have: CUDA context, paged optimizer states, other programs.
OUTSIDE_ALLOCATOR_GIB: Final = 1.0
SAMPLE_SECONDS: Final = 0.02


class CpuMeter:
    """Counts live tensors."""

    def __init__(self) -> None:
        self._live = LiveTensors()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def figures(self) -> dict[str, Any]:
        """`tensors_mib`, live tensors at their peak."""
        return {"tensors_mib": self._live.peak / MIB}


class CudaMeter:
    """Caps torch's allocator and asks it for its peaks, and NVML, where installed, for the whole device now and again.

    Parameters
    ----------
    device
        The GPU.
    budget_gib
        Memory that the stage may take; the allocator gets 1 GiB less.
    """

    def __init__(self, device: torch.device, budget_gib: float) -> None:
        self._device, self._budget_gib = device, budget_gib
        self._nvml = find_spec("pynvml") is not None
        self._before = self._most = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        if self._nvml:
            self._before = self._most = torch.cuda.device_memory_used(self._device)  # no context of ours yet
        total = torch.cuda.get_device_properties(self._device).total_memory
        cap = (self._budget_gib - OUTSIDE_ALLOCATOR_GIB) * GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        if self._nvml:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, error, traceback
        self._ended.set()
        if self._nvml:
            self._sampler.join()

    def figures(self) -> dict[str, Any]:
        """`allocated_mib` and `reserved_mib` of the allocator, and `device_mib`, what the device held more than before.

        The last includes the CUDA context and paged states, and whatever other programs took meanwhile.
        """
        return {
            "allocated_mib": torch.cuda.max_memory_allocated(self._device) / MIB,
            "reserved_mib": torch.cuda.max_memory_reserved(self._device) / MIB,
            **({"device_mib": (self._most - self._before) / MIB} if self._nvml else {}),
        }

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._most = max(self._most, torch.cuda.device_memory_used(self._device))


def meter(device: torch.device, budget_gib: float) -> CpuMeter | CudaMeter:
    """What measures on a device."""
    return CudaMeter(device, budget_gib) if device.type == "cuda" else CpuMeter()
