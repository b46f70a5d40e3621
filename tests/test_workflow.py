"""The workflow as a whole: what runs, what is planned after a change, what a kill loses (nothing)."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from slurm_cluster import cancel, missing_programs, slurm
from workflow_runs import (
    TINY,
    command,
    contents,
    kill_when,
    logs,
    planned,
    slurm_plugin,
    snakemake,
    start_on_slurm,
    suspend,
    unlock,
    wait_until,
    without_cost,
)

from kava.card import card_text
from kava.config import Runtime, load_config
from kava.locks import locked
from kava.report.across import report_across
from kava.report.record import read_record

pytestmark = pytest.mark.slow
ARMS = ("flat", "structured", "sft")


@pytest.fixture(scope="module", name="finished")
def finished_demo(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which the tiny demo has run to its report, and what Snakemake printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, snakemake(folder, "--cores", "2")


def test_the_report_and_its_numbers_are_there(finished) -> None:
    folder, output = finished
    report = json.loads((folder / "results/ab_report.json").read_text())
    assert f"{report['verdict']}\n{folder / 'results/ab_report.html'}\n" in output
    assert (folder / "results/ab_report.html").stat().st_size > 100_000
    assert set(report["arms"]) == set(ARMS)
    assert report["arms"]["sft"]["seeds"]["42"]["cos_sim"] is None
    assert report["fairness"]["mismatches"] == []
    for name in ("optimizer_steps", "train_tokens"):
        assert len({report["arms"][arm]["seeds"]["42"][name] for arm in ARMS}) == 1
    (store,) = report["stores"].values()
    assert store["tokens"] * 2 * 256 * 2 == store["raw_bf16_bytes"]
    assert 0 < store["ratio"] < 0.9


def test_the_record_finds_the_runs_again_and_is_the_same_when_it_is_made_again(finished) -> None:
    folder, _ = finished
    record = folder / "results/demo/record.yaml"
    before = record.read_bytes()
    report = report_across([read_record(record.parent)], "").to_dict()
    told = json.loads((folder / "results/ab_report.json").read_text())
    assert {f"demo/{arm}": row for arm, row in told["arms"].items()} == report["arms"]
    assert str(folder) not in before.decode()
    snakemake(folder, "--forcerun", "report")
    assert record.read_bytes() == before


def test_a_students_card_is_what_its_manifests_say(finished) -> None:
    sources = Runtime.of(load_config(None)).sources
    for arm in ARMS:
        run = finished[0] / "results/demo" / arm / "seed-42"
        student, evaluation = (
            json.loads((run / part / "manifest.json").read_text()) for part in ("student", "evaluation")
        )
        assert (run / "student/README.md").read_text() == card_text(student, sources, evaluation)


def test_snakemakes_report_holds_the_page_and_every_run_and_needs_no_network(finished, tmp_path, monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    page = tmp_path / "provenance.html"
    output = snakemake(finished[0], "--report", str(page))
    assert "Missing metadata" not in output
    text = page.read_text()
    for told in ("ab_report.html", "ab_report.json", "Does keeping the structure of the KV cache"):
        assert told in text
    labels = {
        (found["model"], found["seed"])
        for found in map(json.loads, re.findall(r'"labels": ({[^}]*"model"[^}]*})', text))
    }
    assert labels == {*((arm, "42") for arm in ARMS), ("teacher", "–"), ("base student", "–")}
    assert not re.findall(r'(?:src|href)="https?:', text)


def test_one_gpu_job_at_a_time_unless_raised(finished) -> None:
    # Run on two cores: once the tokens are there, extract, two references and the SFT arm are ready together.
    (log,) = sorted((finished[0] / ".snakemake/log").glob("*.log"))[:1]
    output = log.read_text()
    assert output.count("Execute 1 jobs") >= 11
    assert "Execute 2 jobs" not in output


def test_the_terminal_has_a_line_per_job_at_its_start_and_at_its_end(finished) -> None:
    _, output = finished
    jobs = [("tokenize", 1), ("extract", 1), ("evaluate_teacher", 1), ("distill flat, seed 42", 1), ("report", 1)]
    for name, times in jobs:
        started = re.findall(rf"^\d\d:\d\d:\d\d  {name}: started, log in results/\S+\.log$", output, re.MULTILINE)
        done = re.findall(rf"^\d\d:\d\d:\d\d  {name}: done in .* \(\d+ of 13\)", output, re.MULTILINE)
        assert (len(started), len(done)) == (times, times), name
    assert "evaluate_teacher: warning: the teacher answered none of 12 questions right" in output
    assert output.index("evaluate_teacher: done") < output.index("distill flat, seed 42: started")
    for noise in ("resources:", "jobid:", "Select jobs", "SNAKEMAKE", "reason:", "gemm_4bit"):
        assert noise not in output


def test_codecs_are_measured_for_who_asks_and_nothing_else_runs_again(finished) -> None:
    assert not list(finished[0].glob("results/bench"))
    assert "report.codecs: true" in (finished[0] / "results/ab_report.html").read_text()
    assert planned(finished[0], "--config", "report={codecs: true}") == {"bench_store", "report", "all"}


def test_nothing_is_to_be_done_after_a_run(finished) -> None:
    assert planned(finished[0]) == set()


def test_key_order_tracker_and_device_rerun_nothing(finished) -> None:
    assert planned(finished[0], "--config", "tracker=tensorboard", "device=cpu") == set()


def test_notes_rerun_the_report_alone(finished) -> None:
    assert planned(finished[0], "--config", "notes=a second look") == {"report", "all"}


def test_changing_the_loss_of_one_arm_plans_that_arm_and_the_report(finished) -> None:
    jobs = planned(finished[0], "--config", "arms={structured: {loss: {kind: mse}}}")
    stages = {f"{stage} structured" for stage in ("pretrain", "distill", "evaluate")}
    assert jobs == stages | {"report", "all"}


def test_other_settings_under_a_name_that_is_taken_are_told_before_they_run(finished) -> None:
    told = "results/demo was last made with other settings (arms.structured.loss.kind: mercator, now mse). What depends"
    assert told in snakemake(finished[0], "--dry-run", "--config", "arms={structured: {loss: {kind: mse}}}")
    assert "other settings" not in snakemake(finished[0], "--dry-run")


def test_another_student_trains_every_arm_again_and_reads_the_same_store(finished) -> None:
    jobs = planned(finished[0], "--config", "student={model: kava:teacher}")
    training = {f"{stage} {arm}" for stage in ("distill", "evaluate") for arm in ARMS}
    assert jobs == training | {"pretrain flat", "pretrain structured", "evaluate_student_base", "report", "all"}


def test_another_teacher_dtype_extracts_again_and_trains_what_reads_it(finished) -> None:
    jobs = planned(finished[0], "--config", "teacher={dtype: bfloat16}")
    assert {"extract", "evaluate_teacher", "pretrain flat", "distill structured", "report"} <= jobs
    assert not {"tokenize", "distill sft"} & jobs


def test_checkpoint_settings_train_nothing_anew(finished) -> None:
    jobs = planned(finished[0], settings={"distill": TINY["distill"] | {"save_every": 4, "keep_checkpoints": 1}})
    assert jobs == {"report", "all"}  # it shows the configuration


def test_removing_an_arm_leaves_only_the_report_to_make(finished) -> None:
    assert planned(finished[0], "--config", "arms={flat: null}") == {"report", "all"}


def test_forcing_one_stage_plans_it_and_what_follows(finished) -> None:
    jobs = planned(finished[0], "--forcerun", "distill")
    assert jobs == {f"{stage} {arm}" for stage in ("distill", "evaluate") for arm in ARMS} | {"report", "all"}


def test_a_second_experiment_extracts_nothing(finished) -> None:
    jobs = planned(finished[0], "--config", "experiment=second")
    assert {job.split()[0] for job in jobs} == {"pretrain", "distill", "evaluate", "report", "all"}


def test_a_second_clone_with_the_same_cache_extracts_and_deletes_nothing(finished, tmp_path) -> None:
    folder, _ = finished
    cache = f"cache_dir={folder / 'results'}"
    before = {p: p.stat().st_mtime_ns for p in (folder / "results").rglob("*")}
    jobs = planned(tmp_path, "--config", cache)
    assert {job.split()[0] for job in jobs} == {"pretrain", "distill", "evaluate", "report", "all"}
    target = "results/demo/sft/seed-42/student/manifest.json"
    snakemake(tmp_path, "--config", cache, "--", target)
    assert (tmp_path / target).is_file()
    after = {p: p.stat().st_mtime_ns for p in (folder / "results").rglob("*") if p.name != ".shared"}
    assert after == before


def test_a_job_that_fails_while_it_waits_leaves_the_store_that_another_clone_sealed(finished, tmp_path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(finished[0] / "results", cache)
    (manifest,) = (cache / "teacher_kv").glob("*/manifest.json")
    sealed = manifest.rename(tmp_path / "sealed.json")
    settings = {"cache_dir": str(cache)}
    arguments = command(tmp_path / "clone", "--rerun-incomplete", "--", str(manifest), settings=settings)
    with locked(manifest.parent / "locks/store.lock"):
        run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = manifest.with_name("extract.log")
        while not (log.is_file() and "waiting for" in log.read_text()):
            assert run.poll() is None
            time.sleep(0.1)
        sealed.rename(manifest)
        for child in psutil.Process(run.pid).children(recursive=True):
            child.kill()
    assert run.wait() != 0
    assert manifest.is_file()
    jobs = planned(tmp_path / "clone", "--rerun-incomplete", settings=settings)
    assert {"pretrain flat", "report"} <= jobs
    snakemake(tmp_path / "clone", "--rerun-incomplete", "--", str(manifest), settings=settings)


def test_extraction_jobs_share_a_store_and_a_finished_one_needs_none(finished, tmp_path) -> None:
    folder, _ = finished
    plan = snakemake(tmp_path, "--dry-run", settings={"extract_jobs": 3})
    assert re.search(r"extract_part +3\n", plan)
    shared = planned(tmp_path, settings={"extract_jobs": 3, "cache_dir": str(folder / "results")})
    assert not {job for job in shared if job.startswith("extract")}


def test_a_deleted_manifest_is_sealed_again_without_the_teacher(finished) -> None:
    folder, _ = finished
    (manifest,) = (folder / "results/teacher_kv").glob("*/manifest.json")
    before, cost = manifest.read_bytes(), (manifest.parent / "cost.json").read_bytes()
    manifest.unlink()
    snakemake(folder, "--", str(manifest.relative_to(folder)))
    assert manifest.read_bytes() == before
    assert (manifest.parent / "cost.json").read_bytes() == cost  # written only when the teacher runs
    assert planned(folder) == set()


def test_exported_student_scored_by_the_lm_eval_command_gives_the_reports_numbers(finished, tmp_path) -> None:
    folder, _ = finished
    (task,) = (folder / "results/tokens").glob("*/task")
    student = folder / "results/demo/sft/seed-42/student"
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={student}", "--tasks",
         "kava_gsm8k", "--include_path", str(task), "--batch_size", "12", "--device", "cpu", "--log_samples",
         "--gen_kwargs", "max_gen_toks=8", "--output_path", str(tmp_path)],
        check=True, capture_output=True,
    )  # fmt: skip
    (results,) = tmp_path.rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]["kava_gsm8k"]
    ours = json.loads((student.parent / "evaluation/manifest.json").read_text())
    assert scores["exact_match,strict-match"] == ours["strict_match"]
    assert scores["exact_match,flexible-extract"] == ours["flexible_extract"]
    (file,) = tmp_path.rglob("samples_*.jsonl")
    theirs = [json.loads(line) for line in file.read_text().splitlines()]
    answers = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs}
    lines = (student.parent / "evaluation/samples.jsonl").read_text().splitlines()
    assert {line["doc_id"]: line["answer"] for line in map(json.loads, lines)} == answers


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
    assert "step 20/20" in log
    assert "step 2/20" not in log  # resumed after step 2


def test_slurm_gives_the_same_numbers_and_ends_a_job_that_it_killed(finished, slurm_variables, tmp_path) -> None:
    whole, run = finished[0], "results/demo/sft/seed-42"
    for shared in ("tokens", "references"):  # from here on every stage runs as a job of Slurm
        shutil.copytree(whole / "results" / shared, tmp_path / "results" / shared)
    process = start_on_slurm(tmp_path, slurm_variables, {"arms": {"flat": None}})
    wait_until(lambda: bool(list(tmp_path.glob(f"{run}/student/checkpoints/*/checkpoint-2"))), process)
    suspend("distill", tmp_path)
    cancel("rule_distill_wildcards_sft_42", slurm_variables)
    status, output = process.wait(600), (tmp_path / "snakemake.out").read_text()
    assert status == 0, output + logs(tmp_path)
    assert output.count("Trying to restart job") == 1
    assert "step 2/20" not in (tmp_path / run / "student/distill.log").read_text()  # resumed after step 2
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
