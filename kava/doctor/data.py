"""Whether the rows of a preset's data can be trained on and asked."""

from pathlib import Path

from kava.config.data import FolderData
from kava.config.splits import split_files
from kava.data.rows import load_rows
from kava.doctor.check import Check, fail, ok, warning
from kava.errors import UserError
from kava.tasks import task_of

FORMS = {"json": "JSON lines", "parquet": "Parquet", "saved": "saved by datasets"}


def data_check(data: FolderData, name: str, folder: Path) -> Check:
    """Read all rows of a folder, which takes under a second for GSM8K, and say what a run would take of them."""
    try:
        form, _ = split_files(folder, "train")
        rows = load_rows(data.model_copy(update={"path": str(folder)}))
    except UserError as error:
        wrong, _, fix = str(error).partition("; ")
        return fail("data", f"{name}: {wrong}", fix)
    counts = ", ".join(f"{len(of_split):,} {split}" for split, of_split in rows.splits.items())
    said = f"{name}, on this machine: {FORMS[form]}, {counts} rows, {task_of(data.kind).form}"
    if rows.warnings:
        return warning("data", f"{said}; {' '.join(rows.warnings)}", "look at these rows before a run")
    return ok("data", said)
