"""Students as somebody may have them."""

import json
import shutil
from pathlib import Path
from typing import Any

from kava.config.load import REPOSITORY


def demo_student(folder: Path, **changes: Any) -> Path:
    """The demo's base student in a folder that does not exist yet, with changes to its `config.json`; weights as they
    are."""
    shutil.copytree(REPOSITORY / "kava" / "demo" / "student", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder
