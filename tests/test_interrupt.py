"""Ctrl-C in a whole run."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from workflow_runs import TINY, command, wait_until


@pytest.mark.slow
def test_ctrl_c_ends_snakemake_and_saves_the_step_of_its_job(tmp_path: Path) -> None:
    """A terminal sends it to Snakemake, its shell and the stage alike."""
    settings = {
        "arms": {"structured": None, "flat": None},
        "distill": TINY["distill"] | {"steps": 2000, "save_every": 1000},
    }
    student = tmp_path / "results/demo/sft/seed-42/student"
    target = str(student.relative_to(tmp_path) / "manifest.json")
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command(tmp_path, "--", target, settings=settings), stdout=out, stderr=out, start_new_session=True,
            # A test may run where Ctrl-C is ignored, as in the background of a shell.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    metrics = student / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 0, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) != 0
    said = (student / "distill.log").read_text(encoding="utf-8")
    assert "Traceback" not in said
    step = re.search(r"interrupted after step (\d+) of sft, which is saved", said)
    assert step
    assert (student / "checkpoints").is_dir()
    assert list(student.glob(f"checkpoints/*/checkpoint-{step[1]}/model.safetensors"))
