"""A folder that is gone afterwards, in which real stages run on a few real examples."""

import gc
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from kava.config.data import Gsm8kData
from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.errors import UserError
from kava.files import write_atomic

Rows = list[dict[str, str]]


class BenchJobs(Jobs):
    """Jobs of a configuration, with all that they write below one folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        super().__init__(config)
        self.results = self.cache = folder
        self.experiment = folder / config.experiment


@contextmanager
def workspace(parent: Path | None) -> Iterator[Path]:
    """An empty folder in `parent`, or in the system's temporary one; deleted at the end, also if that is SIGTERM.

    Raises
    ------
    UserError
        `parent` is no directory.
    """
    if parent is not None and not parent.is_dir():
        raise UserError(f"--folder {parent}: there is no such directory; make it, or leave the option out")
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="kava-bench-", dir=parent) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, former)


def on_rows(config: Config, rows: dict[str, Rows], folder: Path) -> Config:
    """The configuration with given rows for data, written to `train.jsonl` and `test.jsonl` of a folder.

    `rows`: split (`train`, `validation`, `test`) → rows of question and answer, one at least.
    """
    # Held-out rows are the end of the training file.
    for name, of_file in (("train", rows["train"] + rows["validation"]), ("test", rows["test"])):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in of_file]
        write_atomic(folder / f"{name}.jsonl", "".join(lines))
    data = Gsm8kData(path=str(folder), train=len(rows["train"]), validation=len(rows["validation"]))
    return config.model_copy(update={"data": data})


@contextmanager
def quiet() -> Iterator[None]:
    """No status lines, bars and warnings of stages: a few steps say nothing about training."""
    from datasets import disable_progress_bars, enable_progress_bars

    log = logging.getLogger("kava")
    level = log.level
    log.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
        log.setLevel(level)


def in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each way in each round; every other round goes backwards, and begins with `before`, not counted."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        before()
        for name in ways if number % 2 == 0 else reversed(list(ways)):
            started = time.monotonic()
            ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent[name].append(time.monotonic() - started)
    return spent


def free(device: torch.device) -> None:
    """Let go of models that nobody uses: a loop's hang in reference cycles, and the one-model guard sees them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
