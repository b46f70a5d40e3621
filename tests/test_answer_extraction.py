"""Which answers count as right: the task that a token set holds, against the harness's own GSM8K."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from datasets import Dataset
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from zoo.data import GSM8K

from kava.data.task import write_task
from kava.data.template import Template
from kava.evaluation.harness import samples, score
from kava.tasks.gold import harness_gsm8k

TEMPLATE = Template("Question: {question}\nAnswer: {answer}")
LONG = "7" * 4_000


class Case(NamedTuple):
    """A model's answer, the number of the gold one, and whether each filter counts it as right."""

    answer: str
    gold: str
    strict: int
    flexible: int


CASES = {
    "as in training": Case("2+3=<<2+3=5>>5 apples.\n#### 5", "5", 1, 1),
    "comma between thousands": Case("#### 1,000", "1000", 1, 1),
    "comma in the gold answer": Case("#### 1000", "1,000", 1, 1),
    "space between thousands": Case("#### 1 000", "1000", 0, 0),
    "point between thousands": Case("#### 1.000", "1000", 0, 0),
    "dollars after the marker": Case("#### $5.00", "5.00", 0, 1),
    "cents that the gold answer has not": Case("#### 5.00", "5", 0, 0),
    "dollars in the gold answer": Case("#### 18", "$18", 1, 1),
    "full stop": Case("#### 72.", "72", 1, 1),
    "three full stops": Case("#### 72...", "72", 0, 0),
    "decimal zero": Case("#### 72.0", "72", 0, 0),
    "negative": Case("#### -3", "-3", 1, 1),
    "negative where positive is right": Case("#### -3", "3", 0, 0),
    "negative dollars": Case("#### -$5", "-5", 0, 1),
    "Unicode minus": Case("#### −3", "-3", 0, 0),
    "Unicode minus where positive is right": Case("#### −3", "3", 0, 1),
    "no marker": Case("The answer is 72.", "72", 0, 1),
    "marker without a space": Case("####72", "72", 0, 1),
    "two markers, the first right": Case("#### 5\n#### 7", "5", 1, 0),
    "two markers, the second right": Case("#### 5\n#### 7", "7", 0, 1),
    "a number after the answer": Case("#### 72\nThat is 3 more", "72", 1, 0),
    "unit": Case("#### 72 apples", "72", 1, 1),
    "per cent": Case("#### 50%", "50", 1, 1),
    "Devanagari digits": Case("#### ७२", "72", 0, 0),
    "marker alone": Case("#### ", "72", 0, 0),
    "no number": Case("I do not know", "72", 0, 0),
    "nothing": Case("", "72", 0, 0),
    "4,000 digits": Case(f"#### {LONG}", LONG, 1, 1),
    "4,000 digits, the last wrong": Case(f"#### {LONG[:-1]}8", LONG, 0, 0),
}


class Canned(LM):
    """A model that gives the answer it was told for each question."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests: list[Instance]) -> list[str]:  # type: ignore[override]
        return [self.answers[request.doc["question"]] for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        del requests
        pytest.fail("an answer to GSM8K is generated, not scored by its likelihood")

    def loglikelihood_rolling(self, requests: list[Instance]) -> Any:
        del requests
        pytest.fail("an answer to GSM8K is generated, not scored by its likelihood")


@pytest.fixture(name="ours")
def task_of_a_token_set(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The lines of samples.jsonl for rows and a model's answers."""

    def run(rows: list[dict[str, str]], answers: dict[str, str]) -> list[dict[str, Any]]:
        write_task(tmp_path, rows, TEMPLATE, GSM8K.harness)
        return samples(score(Canned(answers), tmp_path, 256), GSM8K.harness)

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return run


def test_hard_answers_count_as_in_the_harness_own_gsm8k(ours: Callable[..., list[dict[str, Any]]]) -> None:
    rows = [{"question": name, "answer": f"Some steps.\n#### {case.gold}"} for name, case in CASES.items()]
    answers = {name: case.answer for name, case in CASES.items()}
    marks = {line["question"]: (line["strict_match"], line["flexible_extract"]) for line in ours(rows, answers)}
    assert marks == {name: (case.strict, case.flexible) for name, case in CASES.items()}

    data = {split: Dataset.from_list(rows) for split in ("train", "test")}
    own = ConfigurableTask(config=harness_gsm8k() | {"custom_dataset": lambda **_: data, "num_fewshot": 0})
    theirs: dict[str, dict[str, int]] = {"strict-match": {}, "flexible-extract": {}}
    results = evaluate(Canned(answers), {"tasks": {"gsm8k": own}, "groups": {}, "group_map": {}}, bootstrap_iters=0)
    assert results is not None
    for sample in results["samples"]["gsm8k"]:
        theirs[sample["filter"]][sample["doc"]["question"]] = int(sample["exact_match"])
    assert marks == {name: (theirs["strict-match"][name], theirs["flexible-extract"][name]) for name in CASES}


@pytest.mark.slow
def test_each_of_the_1319_gold_answers_is_right_by_both_filters(
    ours: Callable[..., list[dict[str, Any]]], gsm8k: Path
) -> None:
    rows = [json.loads(line) for line in (gsm8k / "test.jsonl").read_text().splitlines()]
    lines = ours(rows, {row["question"]: row["answer"] for row in rows})
    assert len(lines) == 1_319
    assert [line["doc_id"] for line in lines if not (line["strict_match"] and line["flexible_extract"])] == []


def test_the_task_of_a_token_set_differs_from_the_harness_own_in_its_questions_alone(tmp_path: Path) -> None:
    write_task(tmp_path, [{"question": "How many?", "answer": "#### 5"}], TEMPLATE, GSM8K.harness)
    (loaded,) = TaskManager(include_path=str(tmp_path), include_defaults=False).load("kava_gsm8k")["tasks"].values()
    own, config = harness_gsm8k(), loaded.config
    assert config.doc_to_text == own["doc_to_text"]
    assert ("{{" + config.doc_to_target + "}}") == own["doc_to_target"]
    assert config.filter_list == own["filter_list"]
    assert config.metric_list == own["metric_list"]
    assert config.generation_kwargs == own["generation_kwargs"]
