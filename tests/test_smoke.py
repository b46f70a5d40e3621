"""Real questions, real weights: preset gsm8k-smoke from tokens to report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_runs import REPOSITORY, logs

pytestmark = pytest.mark.slow


def test_gsm8k_with_a_real_nf4_teacher_runs_to_a_report_that_says_it_knows_nothing(
    gsm8k: Path, tinystories: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    subprocess.run(
        [sys.executable, "-m", "kava", "init-student", "--like", str(tinystories), "--output", str(student)], check=True
    )
    settings = {
        "preset": "gsm8k-smoke",
        "teacher": {"model": str(tinystories)},
        "student": {"model": str(student)},
        "data": {"path": str(gsm8k)},
        "arms": {"flat": None},  # every arm takes the same path, and ten seconds of imports for each of three stages
    }
    (tmp_path / "smoke.yaml").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(tmp_path),
         "--cores", "1", "--configfile", str(tmp_path / "smoke.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + logs(tmp_path)
    report = json.loads((tmp_path / "results/ab_report.json").read_text())
    assert "No arm answers these questions" in report["verdict"]
    assert report["teacher"]["n"] == 32
    for arm in report["arms"].values():
        assert arm["seeds"]["42"]["strict_match"] <= 1 / 32
    (store,) = (tmp_path / "results/teacher_kv").glob("*/manifest.json")
    manifest = json.loads(store.read_text())
    assert manifest["spec"]["teacher"]["quantization"] == "nf4"
    assert manifest["geometry"] == {"layers": 2, "kv_heads": 4, "head_dim": 16}
    # One of the first 64 training examples is longer than the model's 512 positions: dropped, not cut.
    (tokens,) = (tmp_path / "results/tokens").glob("*/manifest.json")
    train = json.loads(tokens.read_text())["splits"]["train"]
    assert (train["examples"], train["dropped"]) == (63, 1)
