"""What a run reports while it goes on: `metrics.jsonl`, lines of status and warnings, and a tracker."""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kava.config.training import Distill, Pretrain
from kava.device import device_memory_mib
from kava.errors import UserError
from kava.files import write_atomic
from kava.training.model import parts
from kava.training.trackers import open_tracker
from kava.training.watch import alignment_word, warnings_at

LABELS = {"cos_sim": "cos", "cos_sim_centered": "centred"}
log = logging.getLogger("kava")


class MetricsFile:
    """`metrics.jsonl`: one object per logged step, none twice after a resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume_at(self, step: int) -> float:
        """Drop lines after a step; returns the seconds spent up to the last line kept."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        return kept[-1]["seconds"] if kept else 0.0

    def read(self) -> list[dict[str, Any]]:
        """All lines, but for a last one that a kill has torn."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@dataclass(frozen=True)
class TrainingRun:
    """One phase of one arm: what it is called, and where it leaves what it has.

    Attributes
    ----------
    folder
        Of the stage; checkpoints go to `checkpoints/<fingerprint>/`, logged steps to `metrics.jsonl`.
    fingerprint
        Hash of all that the run depends on, so that a checkpoint of other settings is never continued.
    arm
        Name for status lines.
    seed
        Of the data order and of dropout.
    device, tracker
        Where to run, and where to log.
    """

    folder: Path
    fingerprint: str
    arm: str
    seed: int
    device: torch.device
    tracker: str = "none"


class Journal:
    """Where the logged steps of a run go; a context manager around its steps.

    Parameters
    ----------
    run, settings
        Of the phase.
    writes
        Whether this process writes; one of several does.
    late
        Step at which a slow alignment is judged, see `late_step`.
    """

    def __init__(self, run: TrainingRun, settings: Pretrain | Distill, writes: bool, late: int) -> None:
        self._run, self._steps, self._writes, self._late = run, settings.steps, writes, late
        self._metrics = MetricsFile(run.folder / "metrics.jsonl")
        self._bar = tqdm(
            total=settings.steps, unit="step", desc=run.arm, disable=None if writes else True, dynamic_ncols=True,
            leave=False,
        )  # fmt: skip
        self._tracker = open_tracker(run.tracker, run.folder, settings) if writes else None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._tracker:
            self._tracker.finish()

    def start(self, step: int) -> None:
        """Begin after so many steps; lines after them are dropped, and seconds go on from there."""
        self._logged = time.monotonic()
        self._began = self._logged - (self._metrics.resume_at(step) if self._writes else 0.0)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done here is no part of training, and takes none of its seconds."""
        began = time.monotonic()
        yield
        spent = time.monotonic() - began
        self._began, self._logged = self._began + spent, self._logged + spent

    def line(self, step: int, means: dict[str, float], groups: list[dict[str, Any]], waited: float) -> None:
        """One line of everything.

        Parameters
        ----------
        step
            The last one that is done.
        means
            Losses since the line before.
        groups
            Of the optimizer.
        waited
            Seconds that batches were waited for since then.

        Raises
        ------
        UserError
            The loss is not finite.
        """
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss of {self._run.arm} is {means['loss']} at step {step}; lower the learning rates or kv_weight "
                "and run again (what was stored and pretrained is kept)"
            )
        rates: dict[str, float | None] = {"student_lr": None, "projector_lr": None}
        now = time.monotonic()
        record = {
            "step": step,
            "loss": means["loss"],
            **{name: means.get(name) for name in parts()},
            **rates | {group["rate"]: group["lr"] for group in groups},
            "data_wait": waited / (now - self._logged),
            "seconds": now - self._began,
            "device_memory_mib": device_memory_mib(self._run.device),
        }
        self._logged = now
        if not self._writes:
            return
        self._metrics.append(record)
        with self._bar.external_write_mode():
            log.info(status_line(record, self._steps, self._run.arm))
            for sentence in warnings_at(record, self._late):
                log.warning("warning: %s", sentence)
        self._bar.update(step - self._bar.n)
        if self._tracker:
            self._tracker.log({f"train/{name}": x for name, x in record.items() if x is not None}, step=step)


def status_line(record: dict[str, Any], steps: int, arm: str) -> str:
    """`step 100/800 arm=flat loss=… ce=… kv=… cos=… centred=… phase=…`."""
    words = [f"step {record['step']}/{steps} arm={arm} loss={record['loss']:.4f}"]
    for name in parts():
        if record[name] is not None:
            words.append(f"{LABELS.get(name, name)}={record[name]:.4f}")
    if record["cos_sim_centered"] is not None:
        words.append(f"phase={alignment_word(record['cos_sim_centered'])}")
    return " ".join(words)
