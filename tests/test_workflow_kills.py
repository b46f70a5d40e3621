"""What a kill loses (nothing): of a run on this machine, and of a job of a cluster."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from slurm_cluster import cancel, missing_programs, slurm
from workflow_runs import (
    contents,
    finished_demo,  # noqa: F401
    kill_when,
    logs,
    planned,
    slurm_plugin,
    snakemake,
    start_on_slurm,
    unlock,
    wait_until,
    without_cost,
)

pytestmark = pytest.mark.slow


def test_a_kill_in_extract_and_in_distill_loses_no_finished_work(finished, tmp_path) -> None:
    whole, _ = finished
    target = "results/demo/flat/seed-42/student/manifest.json"
    kill_when(tmp_path, target, lambda: len(list(tmp_path.glob("results/teacher_kv/*/shards/*.json"))) >= 2)
    assert not list(tmp_path.glob("results/teacher_kv/*/manifest.json"))
    shard = min(tmp_path.glob("results/teacher_kv/*/shards/*.json"))
    kept = shard.stat().st_mtime_ns
    checkpoint = "results/demo/flat/seed-42/student/checkpoints/*/checkpoint-2"
    kill_when(tmp_path, target, lambda: bool(list(tmp_path.glob(checkpoint))))
    unlock(tmp_path)
    snakemake(tmp_path, "--rerun-incomplete", "--", target)

    assert shard.stat().st_mtime_ns == kept
    for part in ("results/teacher_kv", "results/demo/flat/seed-42/student/model.safetensors"):
        assert contents(tmp_path / part) == contents(whole / part)
    log = (tmp_path / "results/demo/flat/seed-42/student/distill.log").read_text()
    assert "step 4/4" in log
    assert "step 2/4" not in log  # resumed after step 2


def test_slurm_gives_the_same_numbers_and_ends_a_job_that_it_killed(finished, slurm_variables, tmp_path) -> None:
    whole, run = finished[0], "results/demo/sft/seed-42"
    for shared in ("tokens", "references", "bench"):  # from here on every stage runs as a job of Slurm
        shutil.copytree(whole / "results" / shared, tmp_path / "results" / shared)
    process = start_on_slurm(tmp_path, slurm_variables, {"arms": {"flat": None}})
    wait_until(lambda: bool(list(tmp_path.glob(f"{run}/student/checkpoints/*/checkpoint-2"))), process)
    cancel("rule_distill_wildcards_sft_42", slurm_variables)
    status, output = process.wait(600), (tmp_path / "snakemake.out").read_text()
    assert status == 0, output + logs(tmp_path)
    assert output.count("Trying to restart job") == 1
    assert "step 2/4" not in (tmp_path / run / "student/distill.log").read_text()  # resumed after step 2
    assert contents(tmp_path / "results/teacher_kv") == contents(whole / "results/teacher_kv")
    reports = [json.loads((folder / "results/ab_report.json").read_text()) for folder in (whole, tmp_path)]
    for arm in ("structured", "sft"):
        expected, found = (without_cost(report["arms"][arm]) for report in reports)
        assert found == expected
    assert planned(tmp_path, settings={"arms": {"flat": None}}) == set()


@pytest.fixture
def slurm_variables(tmp_path) -> Iterator[dict[str, str]]:
    """Environment of a Slurm that runs during the test, and of its plugin."""
    plugin = slurm_plugin()
    if lacking := missing_programs() or ([] if plugin else ["snakemake-executor-plugin-slurm"]):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    with ExitStack() as stack:
        try:
            variables = stack.enter_context(slurm(tmp_path / "slurm"))
        except RuntimeError as error:
            pytest.skip(str(error))
        yield variables | {"PYTHONPATH": plugin}
