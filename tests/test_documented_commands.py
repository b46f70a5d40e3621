"""Every command of the README and of docs/ is run here or in a named place, or says what it needs.

Snakemake and make are asked what they would run: the stages themselves are run by the workflow's tests, and `make test`
by CI.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM, AutoTokenizer
from workflow_runs import TINY, run_in_this_process, slurm_plugin
from zoo.data import write_lines
from zoo.text import pair

from kava.cli import main
from kava.config import Jobs, Runtime, load_config
from kava.config.load import REPOSITORY

pytestmark = pytest.mark.slow
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")))
# Beginning of a command → a test file that runs it, and what stands there when it does.
ELSEWHERE = {
    "kava bench store": ("test_bench_store.py", '"bench", "store"'),
    # Of models that need not be here; that of the demo is run as it stands.
    "kava bench extract --preset": ("test_bench_extract.py", '"bench", "extract"'),
    "kava fetch": ("test_fetch.py", '"-m", "kava", "fetch"'),
    # Its steps do not fit the settings of this file's folder, nor need the package be here.
    "snakemake --cores 1 results/ab_report.html --config preset=smollm2": (
        "test_smoke.py",
        '"preset": "smollm2-quick"',
    ),
    "snakemake --report": ("test_workflow.py", '"--report", str(page)'),
    "lm_eval run": ("test_workflow.py", '"-m", "lm_eval", "run"'),
}


def blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each fenced block."""
    text = (REPOSITORY / page).read_text()
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start(1)) + 1, block[1]


def commands() -> Iterator[tuple[str, str]]:
    """Where it stands and what it says, comment included, each once; lines that go on are one."""
    seen = set()
    for page in PAGES:
        for first, text in blocks(page, "sh"):
            for match in re.finditer(r"(?:.*\\\n)*.+", text):
                line = match[0].replace("\\\n", "")
                if (words := tuple(shlex.split(line, comments=True))) not in seen:
                    seen.add(words)
                    yield f"{page}:{first + text.count(chr(10), 0, match.start())}", line


def needs(line: str) -> str | None:
    """What a comment says that a command needs."""
    found = re.search(r"#.*\b(needs [^:]*)", line)
    return found and found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As after a clone and runs of seconds."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(REPOSITORY / "Snakefile", folder)
    shutil.copytree(REPOSITORY / "workflow", folder / "workflow")
    (folder / "config.yaml").write_text(yaml.safe_dump({"preset": "demo"} | TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for experiment in ("demo", "long"):
            plan = Jobs(load_config("config.yaml", {"experiment": experiment}))
            run_in_this_process(plan, Runtime.of(plan.config))
    shutil.copytree(folder / "results", folder / "shared")
    for experiment in ("mine", "steps1500"):
        shutil.copytree(folder / "results/long", folder / "results" / experiment)
    write_lines(folder / "french", [pair(n) for n in range(300)], [pair(n, "test") for n in range(20)])
    (settings,) = (text for _, text in blocks("docs/own-data.md", "yaml"))
    (folder / "text.yaml").write_text(settings.replace("/data/french", str(folder / "french")))
    (folder / "my.yaml").write_text("notes: a setting of one's own\n")
    return folder


def filled_in(text: str, folder: Path) -> str:
    """With the names that a reader is to fill in."""
    (store,) = (folder / "results/teacher_kv").glob("*/manifest.json")
    name = store.parent.name
    given = {"/data/kava": str(folder / "shared"), "NAME-KEY": name, "prune KEY": f"prune {name.rpartition('-')[2]}"}
    for placeholder, value in given.items():
        text = text.replace(placeholder, value)
    return text


@pytest.mark.parametrize(("place", "line"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_a_command_does_what_it_says(place: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if any(line.startswith(command) for command in ELSEWHERE):
        return
    for command in line.split("&&"):
        words = shlex.split(filled_in(command, folder), comments=True)
        if words[0] == "snakemake":
            if "slurm" in line and slurm_plugin() is None:
                pytest.skip("not installed: snakemake-executor-plugin-slurm")
            environment = os.environ | {"PYTHONPATH": slurm_plugin() or ""}
            arguments = [sys.executable, "-m", *words, *([] if "-n" in words else ["--dry-run"])]
            done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "job " in done.stdout or "Nothing to be done" in done.stdout + done.stderr
        elif words[0] == "make":
            dry = ["make", "--dry-run", "--always-make", "--directory", str(REPOSITORY), words[1]]
            would = subprocess.run(dry, capture_output=True, text=True, check=True).stdout
            assert {"report": "results/ab_report.html", "test": '-m "not slow"'}[words[1]] in would
        elif words[-1] == "--help":
            with pytest.raises(SystemExit, match=r"^0$"):
                main(words[1:])
        elif words[0] == "kava":
            # The reference preset cannot run on every machine, nor fits with the settings of this folder beside it.
            assert main(words[1:]) in ({0, 1} if words[1] in ("doctor", "plan") else {0})
        elif words[0] == "export":
            assert re.fullmatch(r"[A-Z_]+=\S+", words[1])
        else:
            assert needs(line), f"{place}: neither run nor marked with what it needs: {line}"


def test_the_documented_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    programs = [(page, text) for page in PAGES for _, text in blocks(page, "python")]
    assert {page for page, _ in programs} >= {"README.md", "docs/store.md"}
    for page, program in programs:
        exec(compile(filled_in(program, folder), page, "exec"), {})


def test_a_link_of_the_readme_leads_to_a_file() -> None:
    """`mkdocs build --strict` looks at those of docs/."""
    links = re.findall(r"\]\(([^)]+)\)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 10
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


def test_what_is_published_is_a_model_and_nothing_of_its_training(folder: Path, tmp_path: Path) -> None:
    (upload,) = (line for _, line in commands() if line.startswith("hf upload"))
    words = shlex.split(upload, comments=True)
    student = folder / words[3]
    (student / ".lock").touch()
    names = [path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()]
    published = list(filter_repo_objects(names, allow_patterns=words[words.index("--include") + 1 :]))
    assert sorted(published) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    for name in published:
        shutil.copy(student / name, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "qwen2"
    assert AutoTokenizer.from_pretrained(tmp_path)("1")["input_ids"]


def test_where_else_a_command_is_run_is_there() -> None:
    for file, text in ELSEWHERE.values():
        assert text in (REPOSITORY / "tests" / file).read_text()
