"""What becomes of an answer that a model wrote, and how its tokens are drawn: pure functions, without a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo.data import GSM8K

from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY, load_config
from kava.data.answers import WrittenAnswer, shard_path, teacher_rows, write_shard
from kava.data.template import Template
from kava.errors import UserError
from kava.evaluation.generate import draw
from kava.evaluation.write import each_once
from kava.evaluation.written import counted
from kava.files import checksums, write_json
from kava.plan.judging import writing_of
from kava.tasks import task_of

CONFIG = REPOSITORY / "config.yaml"
GOLD = "They have 500+518=<<500+518=1018>>1,018.\n#### 1,018"


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("500+518=1018\n#### 1018", "500+518=1018\n#### 1018", True),
        ("It is $1,018.", "It is $1,018.\n#### 1,018", True),
        ("So **1018** apples", "So **1018** apples\n#### 1018", True),
        ("a\n#### 1018. Next one: 3\n#### 4", "a\n#### 1018", True),
        ("a\n####1018", "a\n#### 1018", True),
        ("a\n#### 1019", "a\n#### 1019", False),
        ("1018 in 3 boxes", "1018 in 3 boxes\n#### 3", False),
        ("#### Step 1\nIt is 1018", "#### Step 1\nIt is 1018\n#### 1018", True),
        ("-1018", "-1018\n#### -1018", False),
        ("I cannot tell...", None, None),
        ("", None, None),
    ],
)
def test_an_answer_of_any_form_gets_the_line_of_its_number_and_is_judged_by_it(
    text: str, answer: str | None, right: bool | None
) -> None:
    written = GSM8K.written(text, True, GOLD)
    assert (written and (written.answer, written.right)) == (answer and (answer, right))
    if answer:
        assert answer[GSM8K.answer_start(answer) :].startswith("#### ")


def test_an_answer_that_was_cut_counts_only_with_its_number_behind_the_mark() -> None:
    whole = GSM8K.written("a\n#### 1018\n\nAnd", False, GOLD)
    assert whole is not None
    assert whole.answer == "a\n#### 1018"
    for cut in ("They have 1018", "a\n#### 1018"):  # of a longer reasoning, or number
        assert GSM8K.written(cut, False, GOLD) is None
        assert GSM8K.written(cut, True, GOLD) is not None
    assert task_of("text").written("Bonjour", False, "Bonjour.") is None


@pytest.mark.parametrize(
    ("text", "trimmed", "question", "continued", "whole"),
    [
        ("Question: {question}\nAnswer: {answer}", None, "q", " It is.", "Question: q\nAnswer: It is."),
        ("Question: {question}\nAnswer: {answer}", None, "q", "It is.", "Question: q\nAnswer: It is."),
        ("{question}{answer}", None, "Say: ", " It", "Say: It"),
        ("{question}{answer}", None, "Say:", " It", "Say: It"),
        ("{question}{answer}", None, "def f():\n", "\n    return", "def f():\n    return"),
        ("<user>{question}<bot>\n{answer}", " ", "q", "It", "<user>q<bot>\nIt"),
    ],
)
def test_the_text_of_an_example_is_the_prompt_and_what_was_written_behind_it(
    text: str, trimmed: str | None, question: str, continued: str, whole: str
) -> None:
    template = Template(text, trimmed)
    assert template.fill({"question": question, "answer": template.answer(question, continued)}) == whole


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (2.0, 0.2)])
def test_tokens_are_drawn_with_their_probabilities(temperature: float, top_p: float) -> None:
    logits = np.random.default_rng(0).normal(size=9) * 2
    expected = np.exp(logits / temperature)
    expected /= expected.sum()
    likeliest = np.argsort(-expected)
    fewest = next(n for n in range(1, 10) if expected[likeliest[:n]].sum() >= top_p - 1e-12)
    expected[likeliest[fewest:]] = 0
    expected /= expected.sum()
    n = 20_000
    uniforms = torch.from_numpy((np.arange(n) + 0.5) / n)
    chosen = draw(torch.from_numpy(logits).float().expand(n, 9), uniforms, temperature, top_p)
    found = np.bincount(chosen.numpy(), minlength=9) / n
    assert np.abs(found - expected).max() < 1.5 / n
    assert int(draw(torch.from_numpy(logits)[None], torch.tensor([1 - 2**-53]).double(), temperature, top_p)) in (
        np.flatnonzero(expected)
    )


def line(question: int, sample: int, answer: str | None, kept: bool = True) -> WrittenAnswer:
    return WrittenAnswer(question, sample, answer or "?", answer, kept, kept, True, 5)


def finished(folder: Path, lines: list[WrittenAnswer], otherwise: str) -> Path:
    for shard, start in enumerate(range(0, len(lines), 3)):
        write_shard(shard_path(folder, shard), lines[start : start + 3])
    facts = {"spec": {"answers": {"otherwise": otherwise}}, "shards": checksums(folder, folder.glob("*.jsonl"))}
    write_json(folder / "manifest.json", facts)
    return folder / "manifest.json"


def test_rows_are_the_kept_answers_in_the_order_of_questions_and_gold_or_nothing_for_the_others(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"gold {n}"} for n in range(4)]
    lines = [line(0, 1, "b"), line(0, 0, "a"), line(1, 0, "wrong", kept=False), line(1, 1, None, kept=False),
             line(2, 0, "same"), line(2, 1, "same"), line(3, 0, "e"), line(3, 1, "f", kept=False)]  # fmt: skip
    lines = each_once(lines)
    assert [(x.question, x.sample, x.kept) for x in lines] == [
        (0, 0, True), (0, 1, True), (1, 0, False), (1, 1, False), (2, 0, True), (2, 1, False), (3, 0, True),
        (3, 1, False),
    ]  # fmt: skip
    own = [("q0", "a"), ("q0", "b"), ("q2", "same"), ("q3", "e")]
    for otherwise, expected in (("gold", [*own[:2], ("q1", "gold 1"), *own[2:]]), ("drop", own)):
        found = teacher_rows(finished(tmp_path / otherwise, lines, otherwise), rows)
        assert [(row["question"], row["answer"]) for row in found] == expected
        facts = counted(lines, rows, otherwise, lambda row: len(row["answer"]))
        questions = facts["questions"]
        assert questions["kept"] + questions["gold"] + questions["dropped"] == questions["asked"] == 4
        assert questions[{"gold": "gold", "drop": "dropped"}[otherwise]] == 1
        assert facts["answers"] == {"written": 8, "kept": 4, "right": 5, "cut": 0}
        assert facts["tokens"] == {"written": 40, "kept_mean": 7 / 4, "kept_longest": 4, "gold_mean": 6}


def test_gold_answers_are_in_no_key_and_the_teachers_in_all_that_follow() -> None:
    gold, said, teacher = (
        Jobs(load_config(CONFIG, {"data": data})) for data in ({}, {"answers": "gold"}, {"answers": "teacher"})
    )
    assert gold.write is said.write is None
    assert gold.tokenize == said.tokenize
    assert gold.report.params == said.report.params
    assert "answers" not in gold.tokenize.spec.key.model_dump() | gold.report.spec.model_dump()["data"]
    assert teacher.write
    assert teacher.tokenize.inputs == {"answers": teacher.write.output}
    nested = teacher.write.spec.key.model_dump()
    assert teacher.tokenize.spec.key.model_dump()["answers"] == nested
    assert teacher.extract.spec.key.model_dump()["tokens"]["answers"] == nested
    assert teacher.reference("teacher").spec.key.model_dump()["tokens"]["answers"] == nested


@pytest.mark.parametrize(
    ("answers", "change"),
    [
        ({"samples": 2}, {"teacher": {"dtype": "bfloat16"}}),
        ({"temperature": 1}, {"chat": {}}),
    ],
)
def test_settings_alone_are_the_teachers_and_how_it_is_loaded_is_in_the_key(
    answers: dict[str, Any], change: dict[str, Any]
) -> None:
    settings = {"data": {"answers": {"temperature": 0.5} | answers}}
    one, other = (Jobs(load_config(CONFIG, settings | more)).write for more in ({}, change))
    assert one
    assert other
    assert one.output != other.output


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"answers": {"kind": "teacher", "samples": 2}}, "all to one question would be equal; set temperature: 0.7"),
        ({"answers": {"kind": "teacher", "top_p": 0.9}}, "top_p is 0.9 and temperature 0"),
        ({"answers": {"kind": "teacher", "seed": 3}}, "seed is 3 and temperature 0"),
        ({"kind": "text", "path": ".", "answers": "teacher"}, "set answers: {kind: teacher, keep: all}"),
        ({"answers": "student"}, "'gold', 'teacher'"),
    ],
)
def test_what_cannot_be_is_refused(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(CONFIG, {"data": data})
    assert sentence in str(refused.value)


def test_the_plan_names_the_setting_that_makes_writing_fit() -> None:
    config = load_config(CONFIG, {"data": {"answers": {"batch_size": 64, "max_new_tokens": 2000}}})
    need = writing_of(config.teacher, config.data.answers, 100)  # type: ignore[arg-type]
    (setting, smaller), *_ = need.fixes()
    assert setting == "data.answers.batch_size: 32"
    assert smaller.memory().peak < need.memory().peak
