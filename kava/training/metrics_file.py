"""What a run says while it goes on: `metrics.jsonl`, and a line of status."""

import json
from pathlib import Path
from typing import Any

from kava.files import write_atomic
from kava.training.model import PARTS
from kava.training.watch import phase

LABELS = {"cos_sim": "cos", "cos_sim_centered": "centred"}


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


def status_line(record: dict[str, Any], steps: int, arm: str) -> str:
    """`step 100/800 arm=flat loss=… ce=… kv=… cos=… centred=… phase=…`."""
    parts = [f"step {record['step']}/{steps} arm={arm} loss={record['loss']:.4f}"]
    for name in PARTS:
        if record[name] is not None:
            parts.append(f"{LABELS.get(name, name)}={record[name]:.4f}")
    if record["cos_sim_centered"] is not None:
        parts.append(f"phase={phase(record['cos_sim_centered'])}")
    return " ".join(parts)
