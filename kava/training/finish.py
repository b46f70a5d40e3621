"""Close a training stage: cost, manifest last, checkpoints gone."""

import json
import shutil
from pathlib import Path
from typing import Any

from kava.files import sha256_file, write_json
from kava.models import peak_memory_mib
from kava.training.model import DistillationModel


def finish(output: Path, manifest: dict[str, Any], files: list[str], model: DistillationModel) -> None:
    """Write `cost.json` and the manifest with the hashes of the exported files, then drop the checkpoints."""
    folder = output.parent
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    device = next(model.parameters()).device
    write_json(
        folder / "cost.json",
        {"seconds": json.loads(lines[-1])["seconds"], "peak_memory_mib": peak_memory_mib(device)},
    )
    write_json(output, manifest | {"files": {name: sha256_file(folder / name) for name in files}})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
