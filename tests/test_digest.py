"""The digest of the code sees every module that defines a trained number, and nothing but its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from kava.config import code
from kava.config.load import REPOSITORY

# Where training begins; what it imports, wherever and whenever, may define a number.
STARTS = ("training/pretrain.py", "training/distill.py", "training/phase.py", "metrics.py")
# What is reached from there and defines none, folders with all that is in them, and why.
WITHOUT_NUMBERS = {
    "config": "settings are in the params, as values",
    "report": "reads what is finished",
    "commandline.py": "options of the command line",
    "card.py": "words about a student that is finished",
    "grades.py": "words for numbers that are known",
    "text.py": "words",
    "errors.py": "words",
    "device.py": "where to compute",
    "files.py": "bytes to files and back",
    "hub.py": "where files lie",
    "models/on_disk.py": "where files lie",
    "models/quantised.py": "refuses weights that are quantised already",
    "models/source.py": "where files lie",
    "models/weights.py": "refuses weights that are not whole",
    "data/positions.py": "refuses prompts that do not fit",
    "models/families.py": "refuses models without KV",
    "faults.py": "words",
    "inert.py": "words for numbers that are known",
    "terminal": "words that are shown or left out",
    "data/prompt_format.py": "the prompt that a student's folder carries",
    "tasks": "rows of a token set and where their answers begin, which its key stands for",
    "data/rows.py": "rows of a token set, which its key stands for",
    "data/overlap.py": "words about the rows of a token set",
    "data/task.py": "test questions of a token set",
    "store/integrity.py": "whether bytes are those of the manifest",
    "data/template.py": "texts of a token set, which its key and format version stand for",
}


def modules_reached() -> set[str]:
    """Modules that training imports, also within functions; not those imported for types alone."""
    found: set[str] = set()
    waiting = {REPOSITORY / "kava" / start for start in STARTS}
    while waiting:
        path = waiting.pop()
        found.add(path.relative_to(REPOSITORY / "kava").as_posix())
        waiting |= {other for other in imported(path) if other.relative_to(REPOSITORY / "kava").as_posix() not in found}
    return found


def imported(path: Path) -> Iterator[Path]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                place = REPOSITORY.joinpath(*name.split("."))
                yield from (file for file in (place.with_suffix(".py"), place / "__init__.py")
                            if file.is_file() and REPOSITORY / "kava" in file.parents)  # fmt: skip


def below(name: str, names: object) -> bool:
    """Whether a module is one of the names or lies in a folder that is."""
    return any(name == other or name.startswith(f"{other}/") for other in names)  # type: ignore[attr-defined]


def test_every_module_that_training_reaches_is_in_the_digest_or_said_to_define_no_number() -> None:
    reached = modules_reached() - {"__init__.py"}
    assert len(reached) > 80, "imports were not followed"
    unknown = sorted(name for name in reached if not below(name, [*code.NUMERIC_MODULES, *WITHOUT_NUMBERS]))
    assert unknown == [], (
        f"training imports {', '.join(unknown)}: add it to NUMERIC_MODULES of kava/config/code.py if an edit of it can "
        f"change a trained number, else to WITHOUT_NUMBERS of {Path(__file__).name} with the reason"
    )
    both = sorted(name for name in reached if below(name, code.NUMERIC_MODULES) and below(name, WITHOUT_NUMBERS))
    assert both == []
    assert [name for name in WITHOUT_NUMBERS if not any(below(module, [name]) for module in reached)] == []


def test_an_edit_of_any_of_them_changes_the_digest_and_a_comment_or_a_docstring_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the package whose modules are small, so that hundreds of digests take a second."""
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "kava")
    body = '"""What it makes."""\n\n\ndef value() -> int:\n    """The value."""\n    return 1\n'
    modules = [file.relative_to(REPOSITORY) for file in sorted((REPOSITORY / "kava").rglob("*.py"))]
    for module in modules:
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text(body)
    before = code.code_digest.__wrapped__()
    seen = [module for module in modules if below(module.relative_to("kava").as_posix(), code.NUMERIC_MODULES)]
    for module in seen:
        (tmp_path / module).write_text(body.replace("return 1", "return 2"))
        assert code.code_digest.__wrapped__() != before, module
        (tmp_path / module).write_text(body)
    for module in set(modules) - set(seen):
        (tmp_path / module).write_text(body.replace("return 1", "return 2"))
    assert code.code_digest.__wrapped__() == before
    for old, new in (
        ("return 1", "return 1  # as ever"),
        ("The value", "It"),
        ("What it makes", "It"),
        ("\n\n", "\n\n\n"),
    ):
        for module in seen:
            (tmp_path / module).write_text(body.replace(old, new))
        assert code.code_digest.__wrapped__() == before, new
