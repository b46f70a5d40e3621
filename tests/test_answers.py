"""From answers to the report: marks where strict and flexible differ, plain answers, intervals over several seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from datasets import Dataset, DatasetDict
from record_fixtures import job_inputs, job_spec
from report_fixtures import PROVENANCE, finished_runs
from test_answer_extraction import TEMPLATE, Canned
from transformers import AutoTokenizer
from zoo.data import GSM8K

from kava.config import Runtime, load_config
from kava.config.identity import model_path
from kava.config.job import Job
from kava.config.models import ModelSettings, Teacher
from kava.config.schema import Evaluation
from kava.config.specs import EvaluateSpec, EvaluationKey
from kava.data.task import write_task
from kava.evaluation import evaluate, judge
from kava.evaluation.harness import AnswerStop, harness_results, samples, score
from kava.evaluation.likelihood import AnswerScore
from kava.evaluation.questions import Questions
from kava.files import read_json, write_json
from kava.models.load import load_for_evaluation, load_tokenizer, second_model_allowed
from kava.models.placement import Placed, in_turn
from kava.report.build import build_report
from kava.report.charts.scores import score_chart
from kava.report.inputs import report_inputs
from kava.report.statistics.compare import compare
from kava.report.write import write_record
from kava.tasks.metric import STRICT_MATCH

CPU = torch.device("cpu")
SEEDS = ("1", "2", "3")
# Right by both filters, by the strict one alone, by the flexible one alone, by none.
ANSWERS = {"B": "#### {gold}", "S": "#### {gold}\nThat is 3 more", "F": "The answer is {gold}.", "W": "#### 1"}
# Model → its answers to the twelve questions, arms under each seed. Strict is B + S, flexible is B + F.
PLANTED = {
    "teacher": ("BBBBBBBBBBSF",),
    "student_base": ("BFFFFFWWWWWW",),
    "structured": ("BBBBBBSSSFWW", "BBBBBSSSFFFW", "BBBBBBBBSSSW"),
    "flat": ("BBFFFFFFWWWS", "BFFFFFFFFWWW", "BBBFFFFFFFSW"),
    "sft": ("WWWWWWWWWWWF", "SWWWWWWWWWWF", "SSWWWWWWWWFF"),
}
GOLD = [str(20 + number) for number in range(12)]


def strict(marks: str) -> float:
    return sum(mark in "BS" for mark in marks) / len(marks)


def flexible(marks: str) -> float:
    return sum(mark in "BF" for mark in marks) / len(marks)


# Of the right answers, which are not of matter here.
SCORE = AnswerScore(1.0, np.array([1]), np.array([1]))


def wilson(rate: float, n: int) -> list[float]:
    """Closed form of Wilson's 95% interval."""
    z = 1.959963984540054
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [centre - half, centre + half]


@pytest.fixture(scope="module", name="told")
def report_of_the_stage_itself(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every evaluation is the stage's own; only the models' answers are given. The report, and `record`."""
    root = tmp_path_factory.mktemp("answers")
    planted = finished_runs(root, n=12, seeds=SEEDS)
    tokens = root / "set" / "manifest.json"
    rows = [
        {"question": f"How many are {'very ' * n}many?", "answer": f"Some.\n#### {gold}"} for n, gold in enumerate(GOLD)
    ]
    write_task(tokens.parent / "task", rows, TEMPLATE, GSM8K.harness)
    nothing = Dataset.from_dict({"input_ids": [[1]], "segments": [[0]]})
    DatasetDict(train=nothing, validation=nothing).save_to_disk(str(tokens.parent / "examples"))
    write_json(
        tokens,
        {
            "spec": {"student_reasoning": "full", "data": {"source": {"kind": "gsm8k"}}},
            "splits": {"test": {"sha256": "these"}},
        },
    )
    runtime = Runtime.of(load_config(None, {"teacher": {"model": "the teacher"}, "student": {"model": "the student"}}))
    models = {"the teacher": PLANTED["teacher"][0], "the student": PLANTED["student_base"][0]}
    for arm, of_arm in planted.runs.items():
        models |= {str(run.student): PLANTED[arm][SEEDS.index(seed)] for seed, run in of_arm.items()}

    def answer(model: str, tokenizer: Any, folder: Path, settings: Evaluation) -> dict[str, Any]:
        del tokenizer
        marks = zip(models[model], GOLD, rows, strict=True)
        said = {row["question"]: ANSWERS[mark].format(gold=gold) for mark, gold, row in marks}
        return score(Canned(said), folder, settings.max_new_tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "check_prompts", lambda *_: None)
        patch.setattr(evaluate, "require_room", lambda *_: None)
        patch.setattr(
            evaluate, "test_questions", lambda *_: Questions("test", rows, rows, rows, tokens.parent / "task")
        )
        patch.setattr(judge, "score_answers", lambda *_: [SCORE] * len(rows))
        patch.setattr(evaluate, "write_card", lambda *_: None)
        patch.setattr(evaluate, "load_model_config", lambda _: None)
        patch.setattr(evaluate, "_placed", lambda source, *_: Placed(source.model, CPU, in_turn))
        patch.setattr(evaluate, "load_tokenizer", lambda _: None)
        patch.setattr(evaluate, "load_ends", lambda *_: {})
        patch.setattr(judge, "harness_results", answer)
        spec = EvaluateSpec(key=EvaluationKey(scores=1, evaluation=Evaluation()))
        for role, files in (("teacher", planted.teacher), ("student_base", planted.student_base)):
            output = files.evaluation / "manifest.json"
            inputs = {"tokens": tokens, "teacher": planted.teacher.evaluation / "manifest.json"}
            evaluate.run(Job("evaluate", spec.model_copy(update={"reference": role}), output, inputs), runtime)
        for runs in planted.runs.values():
            for run in runs.values():
                write_json(run.student / "generation_config.json", {})
                inputs |= {"student": run.student / "manifest.json"}
                evaluate.run(Job("evaluate", spec, run.evaluation / "manifest.json", inputs), runtime)
    inputs, of_report = job_inputs(planted), job_spec(planted)
    report = build_report(report_inputs(of_report, inputs, PROVENANCE))
    record = write_record(of_report, inputs, report)
    manifest = read_json(planted.teacher.evaluation / "manifest.json")
    chart = score_chart(report).spec
    return report.to_dict() | {"record": record.read_text(), "manifest": manifest, "chart": chart}


def test_where_strict_and_flexible_differ_every_number_is_of_its_own_metric(told: dict[str, Any]) -> None:
    assert (told["manifest"]["n"], told["manifest"]["questions_sha256"]) == (12, "these")
    assert not [sentence for sentence in told["fairness"]["mismatches"] if "match" in sentence or "extract" in sentence]
    for role in ("teacher", "student_base"):
        (marks,) = PLANTED[role]
        assert (told[role]["strict_match"], told[role]["flexible_extract"]) == (strict(marks), flexible(marks))
        assert told[role]["strict_match_ci95"] == pytest.approx(wilson(strict(marks), 12))
        assert told[role]["flexible_extract_ci95"] == pytest.approx(wilson(flexible(marks), 12))
    for arm in ("structured", "flat", "sft"):
        for seed, marks in zip(SEEDS, PLANTED[arm], strict=True):
            row = told["arms"][arm]["seeds"][seed]
            assert (row["strict_match"], row["flexible_extract"]) == (strict(marks), flexible(marks))
            grades = {"structured": "pass", "flat": "pass", "sft": None}  # of the centred cosine
            assert row["alignment_grade"] == grades[arm]
    shown = told["samples"]
    for question in shown["questions"]:
        for seed, answers in question["answers"].items():
            for arm, answer in zip(shown["arms"], answers, strict=True):
                mark = PLANTED[arm][SEEDS.index(seed)][int(question["doc_id"])]
                assert answer[1:3] == [int(mark in "BS"), int(mark in "BF")]
    first = zip(*(PLANTED[arm][0] for arm in shown["arms"]), strict=True)
    assert shown["disagreements"] == sum(len({mark in "BS" for mark in marks}) > 1 for marks in first)
    circles = json.dumps(told["chart"])
    for arm in ("structured", "flat", "sft"):
        for seed, marks in zip(SEEDS, PLANTED[arm], strict=True):
            assert json.dumps({"arm": arm, "seed": seed, "score": strict(marks)}) in circles
    assert f"strict_match: {strict(PLANTED['teacher'][0])}" in told["record"]


def test_means_and_intervals_over_seeds_are_the_closed_forms_with_questions_as_n(told: dict[str, Any]) -> None:
    for arm in ("structured", "flat", "sft"):
        row = told["arms"][arm]
        for metric, rate_of in (("strict_match", strict), ("flexible_extract", flexible)):
            rates = [rate_of(marks) for marks in PLANTED[arm]]
            mean = sum(rates) / 3
            assert row[f"{metric}_mean"] == pytest.approx(mean)
            assert row[f"{metric}_ci95"] == pytest.approx(wilson(mean, 12))
        rates = [strict(marks) for marks in PLANTED[arm]]
        deviation = math.sqrt(sum((rate - sum(rates) / 3) ** 2 for rate in rates) / 2)
        assert row["strict_match_sd"] == pytest.approx(deviation)
        assert row["strict_match_range"] == [min(rates), max(rates)]
        for bins in told["breakdown"].values():
            assert sum(part["arms"][arm]["rate"] * part["n"] for part in bins) == pytest.approx(12 * sum(rates) / 3)
            for part in bins:
                of_bin = part["arms"][arm]
                assert of_bin["ci95"] == pytest.approx(wilson(of_bin["rate"], part["n"]))


def test_a_comparison_over_seeds_is_of_strict_scores_and_its_tests_are_the_closed_forms(told: dict[str, Any]) -> None:
    row = told["comparisons"][0]
    assert (row["a"], row["b"], row["seeds"]) == ("structured", "flat", list(SEEDS))
    of_seeds = np.array(
        [[[mark in "BS" for mark in marks] for marks in PLANTED[arm]] for arm in ("structured", "flat")]
    )
    by_seed = of_seeds.mean(2)
    assert row["rates"] == pytest.approx(by_seed.mean(1))
    differences = by_seed[0] - by_seed[1]
    assert row["delta"] == pytest.approx(differences.mean())
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    # Student's t of two degrees of freedom has a closed form.
    assert row["seed_level"]["p_value"] == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_the_interval_of_a_difference_over_seeds_is_near_that_of_t_over_questions() -> None:
    rng = np.random.default_rng(4)
    right = rng.random((2, 3, 900)) < np.array([0.55, 0.4])[:, None, None]
    a, b = ({str(s): {str(q): int(x) for q, x in enumerate(of)} for s, of in enumerate(arm)} for arm in right)
    result = compare("a", "b", a, b, STRICT_MATCH)
    of_questions = right[0].mean(0) - right[1].mean(0)
    half = 1.9626 * of_questions.std(ddof=1) / math.sqrt(900)  # t of 899 degrees of freedom
    assert result.ci95 == pytest.approx((of_questions.mean() - half, of_questions.mean() + half), abs=0.05 * half)


@pytest.fixture(scope="module", name="model")
def model_that_repeats_itself(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose head is the embedding, so that a token is likeliest to follow itself, and that forbidden."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(model_path("kava:student"))
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512, num_hidden_layers=1,
                       tie_word_embeddings=True)  # fmt: skip
    model.generation_config.update(
        repetition_penalty=1.8, no_repeat_ngram_size=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def greedy(model: Any, tokenizer: Any, prompt: str, longest: int) -> list[int]:
    """The likeliest token after the other."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(longest):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].tolist()


def test_a_model_that_ships_a_repetition_penalty_answers_plainly_and_ends_at_its_end_token(
    model: Path, tmp_path: Path
) -> None:
    source = ModelSettings(model=str(model))
    rows = [{"question": f"How many are {n} and {n}?", "answer": f"#### {2 * n}"} for n in (3, 40)]
    write_task(tmp_path, rows, TEMPLATE, GSM8K.harness)
    tokenizer = load_tokenizer(source)
    with second_model_allowed():
        loaded = load_for_evaluation(source, CPU)
        plain = [greedy(loaded, tokenizer, TEMPLATE.prompt(row["question"]), 12) for row in rows]
        assert all(len(set(ids)) < len(ids) for ids in plain), "nothing to be punished"
        for longest in (12, 5):
            lines = samples(
                harness_results(loaded, tokenizer, tmp_path, Evaluation(batch_size=1, max_new_tokens=longest)),
                GSM8K.harness,
            )
            assert [line["answer"] for line in lines] == [tokenizer.decode(ids[:longest]) for ids in plain]
        end = plain[0][0]
        config = json.loads((model / "generation_config.json").read_text())
        (model / "generation_config.json").write_text(
            json.dumps(config | {"eos_token_id": [tokenizer.eos_token_id, end]})
        )
        ending = load_for_evaluation(source, CPU)
        lines = samples(
            harness_results(ending, tokenizer, tmp_path, Evaluation(batch_size=1, max_new_tokens=12)), GSM8K.harness
        )
        assert lines[0]["answer"] == tokenizer.decode(end)


def test_a_stop_string_that_begins_in_the_prompt_ends_no_answer(model: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(model=str(model), revision=None))
    prompt, answer = (tokenizer(text, return_tensors="pt")["input_ids"] for text in ("2 + 3 =", " 5"))
    ids = torch.cat([prompt, answer], dim=1)
    assert tokenizer.decode(ids[0]).endswith("= 5")
    for length, ended in ((prompt.shape[1], False), (0, True)):
        assert AnswerStop(tokenizer, ["= 5"], length)(ids, torch.empty(0)).tolist() == [ended]


def test_a_student_is_evaluated_in_the_dtype_of_its_files_and_a_teacher_in_its_own(model: Path) -> None:
    student = ModelSettings(model=str(model))
    teacher = Teacher(model=str(model), quantization="none")
    with second_model_allowed():
        assert {p.dtype for p in load_for_evaluation(student, CPU).parameters()} == {torch.float32}
        assert {p.dtype for p in load_for_evaluation(teacher, CPU).parameters()} == {torch.bfloat16}
