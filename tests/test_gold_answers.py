"""Evaluations of the demo's own models: marks, likelihood of gold answers, agreement, and the same at steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_likelihood import likeliest_one_by_one, one_by_one
from transformers import AutoModelForCausalLM

from kava.bench.workspace import BenchJobs, free, quiet
from kava.config.job import Job, Runtime
from kava.config.load import REPOSITORY, load_config
from kava.config.models import ModelSettings
from kava.data import tokenize
from kava.data.tokens import TokenSet
from kava.errors import UserError
from kava.evaluation import evaluate
from kava.evaluation.at_steps import kept_students, seconds_at
from kava.evaluation.questions import test_questions as questions_of_the_test
from kava.files import read_json, sha256_file
from kava.models.load import load_tokenizer
from kava.training import distill

MARKS, LIKELIHOOD = ["strict_match", "flexible_extract"], ["answer_nll", "teacher_agreement"]
STEPS = [2, 4]
SETTINGS: dict[str, Any] = {
    "teacher": {"quantization": "none", "dtype": "float32"},
    "data": {"train": 16, "validation": 5, "test": 4},
    "distill": {"steps": 4, "batch_size": 2, "accumulation": 1, "log_every": 2, "save_every": 2},
    "evaluation": {"batch_size": 3, "max_new_tokens": 6, "at_steps": STEPS},
    "arms": {"sft": {"aligner": None}, "flat": None, "shuffled": None, "structured": None},
    "seeds": [1],
    "device": "cpu",
}


def jobs_of(root: Path, **changes: Any) -> BenchJobs:
    return BenchJobs(load_config(REPOSITORY / "config.yaml", SETTINGS | {"cache_dir": str(root)} | changes), root)


def run_all(plan: BenchJobs, *jobs: tuple[Any, Job]) -> None:
    with quiet():
        for run, job in jobs:
            free(torch.device("cpu"))
            run(job, Runtime.of(plan.config))


def evaluations(plan: BenchJobs) -> dict[str, Job]:
    return {role: plan.reference(role) for role in ("teacher", "student_base")} | {"sft": plan.evaluate("sft", 1)}


@pytest.fixture(scope="module", name="plan")
def of_the_demo(tmp_path_factory: pytest.TempPathFactory) -> BenchJobs:
    """A student of four steps, kept at two of them; references and student evaluated, with answers written."""
    plan = jobs_of(tmp_path_factory.mktemp("gold"))
    run_all(
        plan,
        (tokenize.run, plan.tokenize),
        (distill.run, plan.distill("sft", 1)),
        *((evaluate.run, job) for job in evaluations(plan).values()),
    )
    return plan


@pytest.fixture(scope="module", name="likely")
def without_written_answers(plan: BenchJobs) -> BenchJobs:
    """The same student, judged by the gold answers alone."""
    plan = jobs_of(plan.cache, evaluation={"batch_size": 3, "max_new_tokens": 6, "at_steps": STEPS, "generate": False})
    elsewhere = plan.cache / "trial" / "manifest.json"
    jobs = evaluations(plan)
    jobs["sft"] = Job("evaluate", jobs["sft"].spec, elsewhere, jobs["sft"].inputs)
    run_all(plan, *((evaluate.run, job) for job in jobs.values()))
    return plan


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_question_has_marks_and_what_its_gold_answer_is_to_the_model(plan: BenchJobs) -> None:
    for name, job in evaluations(plan).items():
        manifest, lines = read_json(job.output), lines_of(job.output.parent / "samples.jsonl")
        assert [set(line) for line in lines] == [{"doc_id", "question", "gold", "answer", *MARKS, *LIKELIHOOD}] * 4
        for metric in (*MARKS, *LIKELIHOOD):
            assert manifest[metric] == pytest.approx(np.mean([line[metric] for line in lines])), (name, metric)
        assert all(line["answer"] for line in lines)
        assert (manifest["teacher_agreement"] == 1.0) == (name == "teacher")
    assert read_json(plan.distill("sft", 1).output.parent / "generation_config.json")["max_new_tokens"] == 6


def test_the_numbers_are_those_of_the_model_itself_one_token_at_a_time(plan: BenchJobs) -> None:
    """By the ids of tokenising the gold text whole, with the end token that the teacher's tokenizer has."""
    tokens, teacher = TokenSet(plan.tokenize.output), ModelSettings(model="kava:teacher")
    asked = questions_of_the_test(tokens, teacher, shortened=False)
    tokenizer = load_tokenizer(teacher)
    lines = lines_of(plan.evaluate("sft", 1).output.parent / "samples.jsonl")
    model = AutoModelForCausalLM.from_pretrained(plan.distill("sft", 1).output.parent).double()
    of_teacher = AutoModelForCausalLM.from_pretrained(REPOSITORY / "kava/demo/teacher", dtype=torch.float32)
    for number in (0, 3):
        ids, segments = asked.input_ids[number], asked.segments[number]
        text = plan.config.template.format(**asked.rows[number])
        assert ids.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert lines[number]["answer_nll"] == pytest.approx(one_by_one(model, ids, segments), rel=1e-5)
        both = zip(*(likeliest_one_by_one(each, ids, segments) for each in (model, of_teacher)), strict=True)
        assert lines[number]["teacher_agreement"] == pytest.approx(np.mean([one == other for one, other in both]))


def test_answers_that_are_not_written_have_no_marks_and_the_same_likelihood(plan: BenchJobs, likely: BenchJobs) -> None:
    for name, job in evaluations(plan).items():
        output = likely.cache / "trial" / "manifest.json" if name == "sft" else evaluations(likely)[name].output
        manifest, lines = read_json(output), lines_of(output.parent / "samples.jsonl")
        assert [set(line) for line in lines] == [{"doc_id", "question", "gold", "answer", *LIKELIHOOD}] * 4
        assert {line["answer"] for line in lines} == {""}
        assert not set(MARKS) & manifest.keys()
        assert all(manifest[metric] == read_json(job.output)[metric] for metric in LIKELIHOOD)
        steps = read_json(job.output)["at_steps"]
        for step, of_step in manifest["at_steps"].items():
            assert of_step == {key: value for key, value in steps[step].items() if key not in MARKS}


def test_students_at_steps_and_references_before_them_are_judged_by_the_validation_questions(plan: BenchJobs) -> None:
    tokens, student = TokenSet(plan.tokenize.output), plan.distill("sft", 1).output.parent
    seconds = {line["step"]: line["seconds"] for line in lines_of(student / "metrics.jsonl")}
    for name, job in evaluations(plan).items():
        manifest, folder = read_json(job.output), job.output.parent
        lines, steps = lines_of(folder / "at_steps.jsonl"), [0] if name != "sft" else STEPS
        assert manifest["at_steps_sha256"] == sha256_file(folder / "at_steps.jsonl")
        assert list(manifest["at_steps"]) == [str(step) for step in steps]
        assert [(line["step"], line["doc_id"]) for line in lines] == [(s, n) for s in steps for n in range(5)]
        for step in steps:
            of_step = [line for line in lines if line["step"] == step]
            found = manifest["at_steps"][str(step)]
            assert found == {
                **{metric: pytest.approx(np.mean([line[metric] for line in of_step])) for metric in MARKS + LIKELIHOOD},
                "n": 5,
                "seconds": seconds[step] if step else 0,
            }
    rows = [line for line in lines if line["step"] == 4]
    model = AutoModelForCausalLM.from_pretrained(student / "at_steps" / "2").double()
    expected = [
        one_by_one(model, *x) for x in zip(tokens.input_ids["validation"], tokens.segments["validation"], strict=True)
    ]
    assert [line["answer_nll"] for line in lines if line["step"] == 2] == pytest.approx(expected, rel=1e-5)
    assert [line["answer_nll"] for line in rows] != pytest.approx(expected, rel=1e-3)
    prompts = [plan.config.template.format(question=row["question"], answer=row["gold"]) for row in rows]
    tokenizer = load_tokenizer(ModelSettings(model="kava:teacher"))
    assert [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in prompts] == [
        ids.tolist() for ids in tokens.input_ids["validation"]
    ]


def test_kept_students_are_whole_models_the_last_of_which_is_the_final_one(plan: BenchJobs) -> None:
    student = plan.distill("sft", 1).output.parent
    manifest = read_json(student / "manifest.json")
    assert manifest["at_steps"] == STEPS
    assert manifest["files"]["at_steps/4/model.safetensors"] == manifest["files"]["model.safetensors"]
    assert manifest["files"]["at_steps/2/model.safetensors"] != manifest["files"]["model.safetensors"]
    (config,) = {(student / at / "config.json").read_bytes() for at in (".", "at_steps/2", "at_steps/4")}
    assert json.loads(config)["kava"]["prompt"] == "Question: {question}\nAnswer:"


def test_a_step_at_which_the_student_was_not_kept_is_refused_before_any_work(plan: BenchJobs) -> None:
    with pytest.raises(UserError, match=r"was not kept at step 3 of evaluation.at_steps; distil it again"):
        kept_students(Path("student"), {"at_steps": [2]}, [2, 3])
    other = jobs_of(plan.cache, data={"train": 15, "validation": 5, "test": 4, "seed": 9})
    with pytest.raises(UserError, match="not those of the token set"):
        evaluate.run(plan.reference("teacher"), Runtime.of(other.config))


def test_seconds_at_a_step_between_two_lines_lie_between_theirs(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "seconds": 4.0}\n{"step": 20, "seconds": 6.0}\n')
    assert seconds_at(tmp_path / "metrics.jsonl", [5, 10, 15]) == {5: 2.0, 10: 4.0, 15: 5.0}


def test_a_further_model_is_judged_as_the_base_student_is(plan: BenchJobs) -> None:
    further = jobs_of(plan.cache, references={"again": {"model": "kava:student"}})
    assert further.references == ("teacher", "student_base", "again")
    job = further.reference("again")
    assert further.report.inputs["reference/again"] == job.output
    run_all(further, (evaluate.run, job))
    again, base = (read_json(further.reference(role).output) for role in ("again", "student_base"))
    assert job.spec.reference == "again"
    for name in (*MARKS, *LIKELIHOOD, "at_steps", "n", "questions_sha256"):
        assert again[name] == base[name], name


def test_a_further_model_of_another_tokenizer_or_a_taken_name_is_refused(plan: BenchJobs, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(model="kava:student"))
    tokenizer.add_tokens(["eggs and ham"])
    shutil.copytree(REPOSITORY / "kava/demo/student", tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    other = jobs_of(plan.cache, references={"other": {"model": str(tmp_path / "other")}})
    with pytest.raises(UserError, match=r"the tokenizer of references.other .* is not that of the token set"):
        evaluate.run(other.reference("other"), Runtime.of(other.config))
    for name in ("teacher", "student_base", "student"):
        with pytest.raises(UserError, match=f"references.{name} has the name of what every run has"):
            jobs_of(plan.cache, references={name: {"model": "kava:student"}})
    with pytest.raises(UserError, match="unknown reference 'nobody'; allowed: teacher, student_base, other"):
        other.reference("nobody")


def test_a_student_that_reads_equations_alone_is_judged_by_those(plan: BenchJobs) -> None:
    tokens, teacher = TokenSet(plan.tokenize.output), ModelSettings(model="kava:teacher")
    whole, shortened = (questions_of_the_test(tokens, teacher, shortened) for shortened in (False, True))
    assert shortened.rows == whole.rows, "the questions and the gold text are the same"
    tokenizer = load_tokenizer(teacher)
    for number, row in enumerate(whole.rows):
        text = tokenizer.decode(shortened.input_ids[number][shortened.segments[number] > 0], skip_special_tokens=True)
        assert "".join(text.split()) == "".join(tokens.task.equations_only(row["answer"]).split())
        assert len(shortened.input_ids[number]) < len(whole.input_ids[number])
