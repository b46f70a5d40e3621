"""What stages record and show while they run."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kava.files import write_json


@contextmanager
def cost_record(path: Path, peak_memory_mib: Callable[[], float]) -> Iterator[None]:
    """Write seconds and peak memory beside a manifest, whose bytes must not depend on them."""
    started = time.monotonic()
    yield
    write_json(path, {"seconds": time.monotonic() - started, "peak_memory_mib": peak_memory_mib()})


def progress_interval() -> float:
    """Seconds between updates of a progress bar: lively on a terminal, few lines in a log file."""
    return 0.2 if sys.stderr.isatty() else 10.0
