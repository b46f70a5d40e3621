"""KAVA without a checkout: a wheel, installed in a clean environment, used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from kava.config.load import REPOSITORY

pytestmark = pytest.mark.slow

SMALL = [
    "--set", "data={train: 40, validation: 8, test: 4}", "--set", "pretrain={steps: 2, log_every: 1}",
    "--set", "distill={steps: 2, log_every: 1}", "--set", "arms={flat: null}",
    "--set", "report.codecs=false",
]  # fmt: skip
STAGES = """
import sys
from kava.cli import main

small = sys.argv[1:]
runs = [["tokenize"], ["extract"]]
runs += [["evaluate", "--reference", role] for role in ("teacher", "student_base")]
for arm in ("structured", "sft"):
    kept = ["--arm", arm, "--seed", "42"]
    runs += [["pretrain", *kept]] if arm == "structured" else []
    runs += [["distill", *kept], ["evaluate", *kept]]
for run in [*runs, ["report"]]:
    assert main([*run, *small]) == 0, run
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment that has KAVA's wheel, and no checkout of it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(REPOSITORY / "kava", source / "kava", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source], check=True
    )
    (wheel,) = folder.glob("kava-*.whl")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    own = subprocess.run(
        [programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # What KAVA depends on is taken from this environment, by a path that brings no editable KAVA with it.
    folders = [path for path in sys.path if path.endswith("-packages")]
    Path(own, "dependencies.pth").write_text("\n".join(folders) + "\n", encoding="utf-8")
    return programs


@pytest.fixture
def run(installed: Path, tmp_path: Path):
    """Run a program of that environment in an empty folder; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KAVA_CACHE")}

    def run(*command: str, status: int = 0) -> str:
        done = subprocess.run(
            [installed / command[0], *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return run


def test_commands_of_an_installed_wheel_know_presets_and_models(run, tmp_path: Path) -> None:
    assert "kava COMMAND" in run("kava", "--help")
    assert "Qwen/Qwen2.5-1.5B-Instruct" in run("kava", "config", "--preset", "qwen2.5-8gb")
    assert "distill" in run("kava", "plan")
    checks = {check["name"]: check for check in json.loads(run("kava", "doctor", "--json"))["checks"]}
    assert checks["packages"]["status"] == "ok"
    assert checks["teacher"]["status"] == "ok"
    assert "no workflow beside the installed package" in checks["snakemake"]["told"]
    run("kava", "config", "--write-docs", status=1)
    assert list(tmp_path.iterdir()) == []


def test_every_stage_of_an_installed_wheel_runs_from_an_empty_folder(run, tmp_path: Path) -> None:
    run("python", "-c", STAGES, *SMALL)
    report = json.loads((tmp_path / "results" / "ab_report.json").read_text(encoding="utf-8"))
    assert report["verdict"]
    assert report["provenance"]["code"]["commit"] == "unknown"
