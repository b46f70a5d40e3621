"""What stages record and show while they run."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kava.files import read_json, write_json


@contextmanager
def cost_record(path: Path, peak_memory_mib: Callable[[], float]) -> Iterator[None]:
    """Write seconds and peak memory beside a manifest, whose bytes must not depend on them."""
    started = time.monotonic()
    yield
    write_json(path, {"seconds": time.monotonic() - started, "peak_memory_mib": peak_memory_mib()})


def add_cost(path: Path, seconds: float, peak_memory_mib: float, **further: float) -> None:
    """Add one process's share: what lies in a cache may be the work of several runs; further sums as they are named."""
    before = read_json(path) if path.is_file() else {"seconds": 0.0, "peak_memory_mib": 0.0}
    peak = max(before["peak_memory_mib"], peak_memory_mib)
    sums = {name: before.get(name, 0) + value for name, value in {"seconds": seconds, **further}.items()}
    write_json(path, before | sums | {"peak_memory_mib": peak})


def progress_interval() -> float:
    """Seconds between updates of a progress bar: lively on a terminal, few lines in a log file."""
    return 0.2 if sys.stderr.isatty() else 10.0
