"""The digest of the code sees every module that defines a trained number, and nothing but its code."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_fixtures import ARMS, TRAINED, all_jobs, reruns, settings_of_a_run  # noqa: F401

from kava.config import Config, code, jobs
from kava.config.load import PACKAGE, REPOSITORY

# Where training begins; what it imports, wherever and whenever, may define a number.
STARTS = ("training/pretrain.py", "training/distill.py", "training/phase.py", "training/measure.py", "metrics.py")
# What is reached from there and defines none, folders with all that is in them, and why.
WITHOUT_NUMBERS = {
    "config": "settings are in the params, as values",
    "report": "reads what is finished",
    "tasks/metric.py": "names of what answers are judged by",
    "exits.py": "how a process ends",
    "card.py": "words about a student that is finished",
    "grades.py": "words for numbers that are known",
    "text.py": "words",
    "errors.py": "words",
    "device.py": "where to compute",
    "files.py": "bytes to files and back",
    "hub.py": "where files lie",
    "models/gguf.py": "a file as a directory, which its key and version stand for",
    "models/gguf_header.py": "refuses GGUF files that cannot be read",
    "models/on_disk.py": "where files lie",
    "locks.py": "who may work in a folder",
    "models/offload.py": "where the teacher's KV lies",
    "models/quantised.py": "refuses weights that are quantised already",
    "models/source.py": "where files lie",
    "models/weights.py": "refuses weights that are not whole",
    "data/positions.py": "refuses prompts that do not fit",
    "models/families.py": "refuses models without KV",
    "faults.py": "words",
    "misalignment.py": "words for numbers that are known",
    "terminal": "words that are shown or left out",
    "data/prompt_format.py": "the prompt that a student's folder carries",
    "tasks": "rows of a token set and where their answers begin, which its key stands for",
    "data/rows.py": "rows of a token set, which its key stands for",
    "data/overlap.py": "words about the rows of a token set",
    "data/task.py": "test questions of a token set",
    "store/integrity.py": "whether bytes are those of the manifest",
    "data/template.py": "texts of a token set, which its key and format version stand for",
}

NUMERIC = (*code.NUMERIC_MODULES, *code.METRIC_MODULES)
BODY = '''"""What it makes."""

log = logging.getLogger("kava")


def value(x: float) -> int:
    """The value."""
    log.info("step %d", x)
    assert x, f"no {x}"
    if x > 9:
        raise UserError(f"{x} is too large")
    return 1
'''
WORDS = [
    ("return 1", "return 1  # as ever"),
    ("The value", "It"),
    ("What it makes", "It"),
    ("\n\n", "\n\n\n"),
    ('log.info("step %d", x)', 'log.warning("at step %d of %s", x, value)'),
    ('f"no {x}"', '"nothing"'),
    ('f"{x} is too large"', '"choose a smaller one"'),
    ("x: float", "x: int"),
    ("-> int", "-> float"),
]


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


def test_every_module_that_training_reaches_is_in_a_digest_or_said_to_define_no_number() -> None:
    reached = modules_reached() - {"__init__.py"}
    assert len(reached) > 80, "imports were not followed"
    unknown = sorted(name for name in reached if not below(name, [*NUMERIC, *WITHOUT_NUMBERS]))
    assert unknown == [], (
        f"training imports {', '.join(unknown)}: add it to NUMERIC_MODULES of kava/config/code.py if an edit of it can "
        f"change a trained number, else to WITHOUT_NUMBERS of {Path(__file__).name} with the reason"
    )
    both = sorted(name for name in reached if below(name, NUMERIC) and below(name, WITHOUT_NUMBERS))
    assert both == []
    assert [name for name in WITHOUT_NUMBERS if not any(below(module, [name]) for module in reached)] == []
    left_out = (*code.SPEAKING, *code.DISTILL_ONLY)
    assert [name for name in left_out if not (below(name, NUMERIC) and name in reached)] == []


def expected_change(module: str) -> tuple[bool, bool, bool]:
    """Whether an edit of a module changes the digest of pretraining, of distillation, of the metrics."""
    trained = below(module, code.NUMERIC_MODULES) and module not in (*code.SPEAKING, *code.METRIC_MODULES)
    return trained and module not in code.DISTILL_ONLY, trained, module in code.METRIC_MODULES


def digests() -> tuple[str, str, str]:
    made = code.code_digest.__wrapped__
    return made("pretrain"), made("distill"), code.metrics_digest.__wrapped__()


def test_an_edit_changes_the_digests_of_what_it_defines_and_words_change_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the package whose modules are small, so that hundreds of digests take a second."""
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    modules = [file.relative_to(PACKAGE).as_posix() for file in sorted(PACKAGE.rglob("*.py"))]
    for module in modules:
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text(BODY)
    before = digests()
    for module in modules:
        (tmp_path / module).write_text(BODY.replace("return 1", "return 2"))
        changed = tuple(new != old for new, old in zip(digests(), before, strict=True))
        assert changed == expected_change(module), module
        (tmp_path / module).write_text(BODY)
    for old, new in WORDS:
        assert old in BODY
        for module in modules:
            (tmp_path / module).write_text(BODY.replace(old, new))
        assert digests() == before, new


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("losses/mercator.py", ARMS),
        ("losses/codi.py", TRAINED),
        ("training/watch.py", set()),
        ("metrics.py", set()),
        ("report/verdict.py", set()),
    ],
)
def test_an_edit_of_a_formula_plans_what_it_must_and_one_of_a_warning_nothing(
    module: str, expected: set[str], base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(base)
    before = all_jobs(config)
    shutil.copytree(PACKAGE, tmp_path / "kava", ignore=lambda _, names: {n for n in names if n.endswith(".json")})
    with (tmp_path / "kava" / module).open("a") as file:
        file.write("\n\nFACTOR = 2\n")
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "kava")
    monkeypatch.setattr(jobs, "code_digest", code.code_digest.__wrapped__)
    assert reruns(before, all_jobs(config)) - {"report"} == expected
