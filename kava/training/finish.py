"""Close a training stage: cost, manifest last, checkpoints gone."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

from kava.device import peak_memory_mib
from kava.files import sha256_file, write_json
from kava.training.model import DistillationModel


def finish(
    output: Path, manifest: dict[str, Any], files: list[str], model: DistillationModel, seconds: float | None = None
) -> None:
    """Write `cost.json` and the manifest with the hashes of the exported files, then drop the checkpoints.

    `seconds` are those of a phase without steps, None where they are in `metrics.jsonl`.
    """
    folder = output.parent
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    device = next(model.parameters()).device
    cost = {
        "seconds": records[-1]["seconds"] if records else (seconds or 0.0),
        "data_wait_share": data_wait_share(records),
        "peak_memory_mib": peak_memory_mib(device),
        "device_memory_mib": max((r["device_memory_mib"] for r in records if r["device_memory_mib"]), default=None),
    }
    write_json(folder / "cost.json", cost)
    write_json(output, manifest | {"files": {name: sha256_file(folder / name) for name in files}})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def data_wait_share(records: list[dict[str, Any]]) -> float:
    """Share of a phase's seconds that its step loop waited for batches, from the lines of `metrics.jsonl`."""
    seconds = [0.0, *(record["seconds"] for record in records)]
    waited = sum(r["data_wait"] * (end - start) for r, (start, end) in zip(records, pairwise(seconds), strict=True))
    return waited / seconds[-1] if records else 0.0
