"""Peak memory of what a process does, on a GPU or on a CPU."""

import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch

from kava.bench.live import LiveTensors

MIB: Final = 1 << 20
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


class Sampled:
    """Asks now and again how much is held, and keeps the most; takes no time of what it watches."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def held(self) -> int:
        """Bytes now."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, error, traceback
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.most = max(self.most, self.held())


class AnonymousMeter(Sampled):
    """Asks Linux for the memory of the process that no file backs."""

    def held(self) -> int:
        return _anonymous_bytes()

    def figures(self) -> dict[str, Any]:
        """`anonymous_mib`: at its peak; null where the system does not say."""
        return {"anonymous_mib": self.most / MIB or None}


def _anonymous_bytes() -> int:
    """Bytes of this process that no file backs; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class CudaMeter(Sampled):
    """Asks torch's allocator for its peaks, and NVML for the whole device now and again."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._before = 0

    def held(self) -> int:
        return torch.cuda.device_memory_used(self._device)

    def __enter__(self) -> Self:
        self._before = self.most = self.held()  # no context of ours yet
        torch.cuda.reset_peak_memory_stats(self._device)
        return super().__enter__()

    def figures(self) -> dict[str, Any]:
        """`allocated_mib` and `reserved_mib` of the allocator, and `device_mib`, what the device held more than before.

        The last includes the CUDA context and paged states, and whatever other programs took meanwhile.
        """
        return {
            "allocated_mib": torch.cuda.max_memory_allocated(self._device) / MIB,
            "reserved_mib": torch.cuda.max_memory_reserved(self._device) / MIB,
            "device_mib": (self.most - self._before) / MIB,
        }


def meter(device: torch.device, timed: bool = False) -> CpuMeter | AnonymousMeter | CudaMeter:
    """What measures on a device; `timed` for a stage whose seconds count, too."""
    if device.type == "cuda":
        return CudaMeter(device)
    return AnonymousMeter() if timed else CpuMeter()
