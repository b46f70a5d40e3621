"""Text of one's own through the whole of a run: every stage, on the demo's models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_likelihood import one_by_one
from transformers import AutoModelForCausalLM, AutoTokenizer
from workflow_runs import planned, run_in_this_process
from zoo.data import write_lines
from zoo.text import CHAT, conversation, pair, text_config

import kava.demo
from kava.bench.workspace import BenchJobs
from kava.card import card_text
from kava.cli import main
from kava.config.job import Runtime
from kava.config.jobs import REFERENCES
from kava.data.tokens import TokenSet
from kava.files import read_json, sha256_file
from kava.plan.check import need_of
from kava.plan.judging import Judged, LikelihoodNeed
from kava.plan.overview import overview
from kava.report.evaluated import FIELDS

pytestmark = pytest.mark.slow
TRAINING = {"steps": 4, "batch_size": 4, "accumulation": 1, "log_every": 2}
SETTINGS: dict[str, Any] = {
    "teacher": {"quantization": "none", "dtype": "float32"},
    "kv": {"shard_tokens": 512, "signals": {"topk_logits": 8}},
    "pretrain": TRAINING,
    "distill": TRAINING | {"steps": 12},
    "evaluation": {"batch_size": 3},
    "seeds": [42],
    "device": "cpu",
    "arms": {
        "flat": None,
        "shuffled": None,
        "structured": {"select": {"kind": "uniform", "budget": 6, "candidates": "all"}},
        "kd": {"aligner": None, "auxiliary": {"logit_kd": {}}},
    },
}


def finished(root: Path, **changes: Any) -> BenchJobs:
    """The jobs of a run over `root/data`, all of them done."""
    plan = BenchJobs(text_config(root, **(SETTINGS | changes)), root)
    run_in_this_process(plan, Runtime.of(plan.config))
    return plan


@pytest.fixture(scope="module", name="run")
def of_prompts_and_responses(tmp_path_factory: pytest.TempPathFactory) -> BenchJobs:
    root = tmp_path_factory.mktemp("text")
    write_lines(root / "data", [pair(n) for n in range(40)], [pair(n, "test") for n in range(8)])
    return finished(root)


def evaluations(plan: BenchJobs) -> dict[str, Path]:
    """Model → folder of its evaluation."""
    found = {role: plan.reference(role).output.parent for role in REFERENCES}
    return found | {arm: plan.evaluate(arm, 42).output.parent for arm in plan.config.arms}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_model_is_judged_by_the_likelihood_of_each_test_row(run: BenchJobs) -> None:
    rows = [pair(n, "test") for n in range(8)]
    means = {}
    for name, folder in evaluations(run).items():
        lines, manifest = lines_of(folder), read_json(folder / "manifest.json")
        assert [line["doc_id"] for line in lines] == list(range(8))
        assert all(set(line) == {*FIELDS, "answer_nll", "teacher_agreement"} for line in lines)
        assert [(line["question"], line["gold"]) for line in lines] == [(r["prompt"], r["response"]) for r in rows]
        assert manifest["answer_nll"] == pytest.approx(sum(line["answer_nll"] for line in lines) / 8, rel=1e-12)
        assert manifest["n"] == 8
        assert "strict_match" not in manifest
        assert manifest["questions_sha256"] == TokenSet(run.tokenize.output).questions_sha256
        assert manifest["samples_sha256"] == sha256_file(folder / "samples.jsonl")
        means[name] = manifest["answer_nll"]
        shares = [line["teacher_agreement"] for line in lines]
        assert manifest["teacher_agreement"] == pytest.approx(sum(shares) / 8, rel=1e-12)
        assert (set(shares) == {1.0}) == (name == "teacher"), "no other model agrees with it everywhere"
    assert len(set(means.values())) == len(means)
    for arm in run.config.arms:
        assert means[arm] < means["student_base"], "twelve steps of training on such text help"


@pytest.mark.parametrize("name", ["teacher", "student_base", "structured"])
def test_it_is_that_of_the_model_itself_one_token_at_a_time(run: BenchJobs, name: str) -> None:
    demo = Path(kava.demo.__file__).parent
    folder = {"teacher": demo / "teacher", "student_base": demo / "student"}.get(name)
    folder = folder or run.distill(name, 42).output.parent
    tokens = TokenSet(run.tokenize.output)
    assert tokens.test_ids is not None
    assert tokens.test_segments is not None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lines = lines_of(evaluations(run)[name])
    # The base student is judged in the dtype of its weights, bfloat16.
    tolerance = 0.02 if name == "student_base" else 1e-5
    for number in (0, 5):
        expected = one_by_one(model.double(), tokens.test_ids[number], tokens.test_segments[number])
        assert lines[number]["answer_nll"] == pytest.approx(expected, rel=tolerance)


def test_the_student_answers_a_prompt_and_its_card_says_how_likely_answers_were(
    run: BenchJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    student = run.distill("structured", 42).output.parent
    assert read_json(student / "config.json")["kava"] == {"prompt": "{question}", "stop": []}
    asked = ["generate", str(student), pair(3)["prompt"], "--max-new-tokens", "8", "--device", "cpu"]
    assert main(asked) == 0
    model, tokenizer = (kind.from_pretrained(student) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(pair(3)["prompt"].rstrip(), return_tensors="pt")["input_ids"]
    output = model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    assert capsys.readouterr().out.strip() == tokenizer.decode(output, skip_special_tokens=True).strip()
    card = (student / "README.md").read_text(encoding="utf-8")
    value = read_json(evaluations(run)["structured"] / "manifest.json")["answer_nll"]
    assert f"| answer NLL, nats per token | {value:.4f} |" in card
    assert "name: answer NLL" in card
    assert "stop" not in card.split("```python")[1].split("```")[0], "nothing but the end token ends an answer"
    assert ".format(question=question).rstrip()" in card


def test_the_report_compares_arms_by_the_likelihood_of_the_same_rows(run: BenchJobs) -> None:
    page = run.report.output.read_text(encoding="utf-8")
    report = read_json(run.report.output.with_suffix(".json"))
    for arm in run.config.arms:
        lines = lines_of(evaluations(run)[arm])
        assert report["arms"][arm]["answer_nll_mean"] == pytest.approx(sum(line["answer_nll"] for line in lines) / 8)
        low, high = report["arms"][arm]["answer_nll_ci95"]
        assert low < report["arms"][arm]["answer_nll_mean"] < high
    (tested,) = (row for row in report["comparisons"] if (row["a"], row["b"]) == ("structured", "sft"))
    assert tested["delta"] == pytest.approx(
        report["arms"]["structured"]["answer_nll_mean"] - report["arms"]["sft"]["answer_nll_mean"]
    )
    assert "answer NLL" in report["verdict"]
    assert pair(3, "test")["response"] in page
    assert "strict match" not in page


def test_the_plan_needs_no_more_than_a_forward_for_an_evaluation(run: BenchJobs) -> None:
    parts = overview(run).stages["evaluate student"].memory.parts
    assert "kv cache" not in parts
    assert parts["logits"] > 0
    who, need = need_of(run.evaluate("kd", 42), Runtime.of(run.config))
    assert who == "evaluate of the student"
    assert need == LikelihoodNeed(Judged(run.config.student, "float32", exported=True), 3, run.config.max_length)


def test_conversations_run_too_and_the_student_takes_a_turn_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = Path(kava.demo.__file__).parent
    models = {}
    for role in ("teacher", "student"):
        shutil.copytree(demo / role, tmp_path / role)
        (tmp_path / role / "chat_template.jinja").write_text(CHAT)
        models[role] = SETTINGS.get(role, {}) | {"model": str(tmp_path / role)}
    write_lines(tmp_path / "data", [conversation(n) for n in range(30)], [conversation(n) for n in range(50, 54)])
    plan = finished(tmp_path, **models, arms=dict.fromkeys(("structured", "flat", "shuffled")))
    (first, *_) = lines_of(plan.evaluate("sft", 42).output.parent)
    assert first["question"].count("[user]") == 2
    assert first["question"].endswith("[assistant] ")
    student = plan.distill("sft", 42).output.parent
    assert read_json(student / "config.json")["kava"]["prompt"] == "[user] {question}\n[assistant]"
    assert main(["generate", str(student), "How many?", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(student).chat_template, "it makes the prompt that was trained"


def test_snakemake_plans_a_run_over_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "data", [pair(n) for n in range(40)], [pair(n, "test") for n in range(8)])
    jobs = planned(tmp_path, settings={"data": {"kind": "text", "path": str(tmp_path / "data"), "validation": 4}})
    assert {"tokenize", "extract", "evaluate_teacher", "evaluate_student_base", "report"} <= jobs


def test_a_card_without_an_evaluation_says_so() -> None:
    sources = Runtime.of(text_config(Path(), device="cpu")).sources
    manifest = {
        "spec": {"name": "a", "seed": 1, "arm": {}, "distill": {"student_lr": 1e-3}, "export_dtype": "float32"},
        "inputs": {}, "alignment": None, "optimizer_steps": 1, "train_tokens": 1, "projector_parameters": None,
    }  # fmt: skip
    assert "## Evaluation\n\nNot evaluated yet." in card_text(manifest, sources)
