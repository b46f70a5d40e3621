"""What a person meets at the prompt: help at once, errors of one sentence, JSON alone on stdout."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_fixtures import in_a_folder_of_its_own  # noqa: F401
from workflow_runs import command

from kava.cli import COMMANDS, main
from kava.config.load import REPOSITORY
from kava.locks import claim, locked
from kava.stages.common import stage_main

CONFIG = str(REPOSITORY / "config.yaml")


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def fails(capsys, *arguments: str) -> str:
    """Error of a command that must fail: one line, no traceback."""
    assert main([*arguments]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return next(line for line in error.splitlines() if "error:" in line)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_answers_at_once_and_without_torch(name: str) -> None:
    code = "import sys; from kava.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *name.split(), "--help"], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("usage:"), done.stderr
    assert done.stdout.endswith("False\n")
    assert time.monotonic() - started < 5


def test_unknown_command_is_named(capsys) -> None:
    assert main(["distil"]) == 2
    assert "unknown command 'distil'" in capsys.readouterr().err


def test_unknown_key_and_preset(capsys) -> None:
    assert "unknown key 'seed'; did you mean 'seeds'" in fails(
        capsys, "extract", "--configfile", CONFIG, "--set", "seed=1"
    )
    assert "unknown preset 'demos'" in fails(capsys, "extract", "--configfile", CONFIG, "--preset", "demos")


def test_unknown_arm_and_seed(capsys) -> None:
    assert "choose an arm with --arm; arms are: flat" in fails(capsys, "distill", "--configfile", CONFIG)
    assert "unknown arm 'flt'" in fails(capsys, "distill", "--configfile", CONFIG, "--arm", "flt")
    assert "seed 7 is not configured" in fails(
        capsys, "distill", "--configfile", CONFIG, "--arm", "flat", "--seed", "7"
    )


def test_missing_input_names_what_makes_it(capsys) -> None:
    assert "run the stage that makes it" in fails(capsys, "distill", "--configfile", CONFIG, "--arm", "sft")


def test_missing_model_directory(capsys) -> None:
    error = fails(capsys, "tokenize", "--configfile", CONFIG, "--set", "teacher.model=./gone")
    assert "./gone does not exist" in error


def write_rows(folder: Path, answer: str) -> None:
    row = {"question": "How many?", "answer": answer}
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))


def test_a_row_without_an_answer_mark_is_named(capsys, tmp_path: Path) -> None:
    write_rows(tmp_path, "It is 5.")
    data = f"data={{kind: gsm8k, path: {tmp_path}, validation: 1}}"
    error = fails(capsys, "tokenize", "--configfile", CONFIG, "--set", data)
    assert "train row 0 has no '####'" in error
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_line_that_is_no_json_is_named(capsys, tmp_path: Path) -> None:
    write_rows(tmp_path, "#### 5")
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"question": \n')
    error = fails(
        capsys, "tokenize", "--configfile", CONFIG, "--set", f"data={{kind: gsm8k, path: {tmp_path}, validation: 1}}"
    )
    assert "train.jsonl, line 2" in error


def test_different_tokenizers_are_refused(capsys, tinystories) -> None:
    error = fails(capsys, "tokenize", "--configfile", CONFIG, "--set", f"student.model={tinystories}")
    assert "teacher and student tokenizers share" in error


def test_a_full_disk_is_one_sentence_and_keeps_the_token_set(capsys, monkeypatch) -> None:
    small = ["--configfile", CONFIG, "--set", "data={train: 20, validation: 5, test: 5}"]
    assert main(["tokenize", *small]) == 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    error = fails(capsys, "extract", *small)
    assert "the store needs up to" in error
    assert "point cache_dir to another disk" in error
    assert list(Path("results/tokens").glob("*/manifest.json"))


def test_json_option_prints_json_alone(capsys) -> None:
    assert main(["config", "--configfile", CONFIG, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preset"] == "demo"
    small = ["--configfile", CONFIG, "--set", "data={train: 20, validation: 5, test: 5}", "--json"]
    assert main(["tokenize", *small]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["examples"] == 20


def test_snakemake_shows_a_configuration_error_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--dry-run", "--config", "distil={steps: 3}"), capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "unknown key 'distil'; did you mean 'distill'" in output
    assert "Traceback" not in output


def test_a_second_process_waits_for_the_shared_cache_and_is_refused_in_a_run(capsys, monkeypatch) -> None:
    small = ["--configfile", CONFIG, "--set", "data={train: 20, validation: 5, test: 5}"]
    assert main(["tokenize", *small]) == 0
    (folder,) = Path("results/tokens").iterdir()
    held = claim(folder / ".lock")
    assert held
    told = []

    def release(message: str, *values: object) -> None:
        told.append(message % values)
        held.release()

    with monkeypatch.context() as patch:
        patch.setattr("kava.locks.log.info", release)
        assert main(["tokenize", *small]) == 0
    assert told[0].startswith(f"waiting for process {os.getpid()}")
    with locked(Path("results/demo/sft/seed-42/student/.lock")):
        assert f"process {os.getpid()} on" in fails(capsys, "distill", "--arm", "sft", *small)


def test_student_like_a_missing_model_is_one_sentence(capsys) -> None:
    assert "cannot load the configuration of" in fails(capsys, "init-student", "--like", "a/b", "--output", "x")


def test_an_input_that_is_named_takes_the_place_of_the_default_one(tmp_path: Path) -> None:
    jobs, tokens = [], tmp_path / "tokens.json"
    tokens.write_text("{}")
    given = ["--preset", "demo", "--input", f"tokens={tokens}", "--output", str(tmp_path / "store" / "manifest.json")]
    run = stage_main(
        "extract", "Extract.", given, lambda plan, _: plan.extract, lambda _: lambda job, _: jobs.append(job)
    )
    assert run == 0
    assert [job.inputs for job in jobs] == [{"tokens": tokens}]
