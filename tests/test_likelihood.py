"""Likelihood of answers and agreement with a teacher: against float64, one token at a time, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from scipy.special import log_softmax

from kava.config.schema import Evaluation
from kava.data.tokens import Segment
from kava.errors import UserError
from kava.evaluation import judge, likelihood
from kava.evaluation.agreement import agreement, read_likeliest, write_likeliest
from kava.evaluation.likelihood import AnswerScore, batches, score_answers
from kava.evaluation.questions import Questions, require_room
from kava.files import write_json
from kava.models.placement import Placed, in_turn, resident
from kava.report.evaluated import read_evaluation
from kava.tasks import scored, task_of

P, R, A = Segment.PROMPT, Segment.REASONING, Segment.ANSWER
# Lengths of prompt, reasoning and answer.
SHAPES = [(3, 0, 5), (7, 0, 1), (1, 0, 20), (12, 0, 9), (2, 4, 3), (5, 0, 5)]


@pytest.fixture(scope="module", name="examples")
def of_random_ids() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    segments = [np.repeat(np.array([P, R, A], np.int8), shape) for shape in SHAPES]
    return [rng.integers(3, 61, len(of_example)).astype(np.int32) for of_example in segments], segments


def one_by_one(model: Any, ids: np.ndarray, segments: np.ndarray) -> float:
    """Mean over tokens behind the prompt of −log p, each from a forward over just what stands before it."""
    values = []
    for position in range(1, len(ids)):
        if segments[position] != P:
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(ids[None, :position].astype(np.int64))).logits[0, -1]
            values.append(-log_softmax(logits.numpy())[ids[position]])
    return float(np.mean(values))


def answer_nll(model: Any, ids: Any, segments: Any, batch_size: int) -> list[float]:
    return [score.nll for score in score_answers(resident(model), ids, segments, batch_size)]


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gemma2"])
def test_it_is_that_of_every_token_in_float64(family: str, examples: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    """Gemma 2 bends the logits that its head gives."""
    model = tiny_model(family, **({"final_logit_softcapping": 2.0} if family == "gemma2" else {}))
    found = answer_nll(model, *examples, batch_size=4)
    model = model.double()
    expected = [one_by_one(model, *example) for example in zip(*examples, strict=True)]
    assert found == pytest.approx(expected, rel=2e-6)
    assert len(set(found)) == len(found)


def test_batches_and_padding_change_nothing_but_rounding(examples: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    model = tiny_model("qwen2")
    alone = answer_nll(model, *examples, batch_size=1)
    for batch_size in (2, 3, 6, 100):
        assert answer_nll(model, *examples, batch_size) == pytest.approx(alone, rel=1e-6)
    order = [3, 0, 5, 1, 4, 2]
    again = answer_nll(model, *([of[number] for number in order] for of in examples), batch_size=4)
    assert again == pytest.approx([alone[number] for number in order], rel=1e-6)


def test_what_stands_before_the_answer_does_not_count_and_its_end_does(
    examples: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    model = tiny_model("qwen2")
    ids, segments = examples[0][3], examples[1][3]
    (whole,), (shorter,) = (answer_nll(model, [ids[:end]], [segments[:end]], 1) for end in (len(ids), len(ids) - 1))
    last = one_by_one(model.double(), ids, np.where(np.arange(len(ids)) == len(ids) - 1, A, P))
    answer = SHAPES[3][2]
    assert whole * answer == pytest.approx(shorter * (answer - 1) + last, rel=1e-5)


def test_a_batch_has_no_more_logits_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1000)
    lengths, starts = [50, 8, 30, 30, 9, 200], [10, 4, 10, 25, 4, 20]
    made = list(batches(lengths, starts, 3, 10))
    assert sorted(example for batch in made for example in batch) == list(range(6))
    assert made[0] == [5], "one example alone may have more"
    for batch in made[1:]:
        assert len(batch) <= 3
        assert len(batch) * (max(lengths[n] for n in batch) - min(starts[n] for n in batch)) * 10 <= 1000
    assert [len(batch) for batch in batches(lengths, starts, 2, 1)] == [2, 2, 2]


def test_without_a_first_token_of_a_prompt_the_others_count() -> None:
    model = tiny_model("qwen2")
    ids, segments = np.array([5, 6, 7], np.int32), np.full(3, A, np.int8)
    assert answer_nll(model, [ids], [segments], 1) == pytest.approx(
        [one_by_one(model.double(), ids, segments)], rel=2e-6
    )


def likeliest_one_by_one(model: Any, ids: np.ndarray, segments: np.ndarray) -> list[int]:
    """At each token behind the prompt, what a forward over just what stands before it finds most probable."""
    found = []
    for position in range(1, len(ids)):
        if segments[position] != P:
            with torch.no_grad():
                found.append(
                    int(model(input_ids=torch.from_numpy(ids[None, :position].astype(np.int64))).logits[0, -1].argmax())
                )
    return found


def test_agreement_is_the_share_of_answer_tokens_with_the_same_likeliest_one(
    examples: tuple[list[np.ndarray], list[np.ndarray]], tmp_path: Path
) -> None:
    """A model against one whose weights differ a little, so that they agree at some tokens and not at others."""
    teacher, student = tiny_model("qwen2"), tiny_model("qwen2")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.01)
    digest = write_likeliest(tmp_path, {"test": score_answers(resident(teacher), *examples, batch_size=4)})
    write_json(tmp_path / "manifest.json", {"likeliest_sha256": digest, "questions_sha256": "these"})
    known = read_likeliest(tmp_path / "manifest.json", "these")["test"]
    scores = score_answers(resident(student), *examples, batch_size=3)
    found = [agreement(*pair) for pair in zip(scores, known, strict=True)]
    expected = []
    for example in zip(*examples, strict=True):
        both = (likeliest_one_by_one(model, *example) for model in (teacher, student))
        expected.append(float(np.mean([one == other for one, other in zip(*both, strict=True)])))
    assert found == pytest.approx(expected)
    assert 0.1 < np.mean(expected) < 0.9


def test_an_answer_that_the_teacher_did_not_read_has_no_agreement() -> None:
    score = AnswerScore(1.0, np.array([5, 6]), np.array([5, 7]))
    assert agreement(score, ([5, 6], [5, 6])) == 0.5
    assert agreement(score, ([5, 9], [5, 7])) is None
    assert agreement(score, ([5], [5])) is None


def test_a_file_that_is_not_the_teachers_is_refused_with_what_makes_it(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    digest = write_likeliest(tmp_path, {"test": [AnswerScore(1.0, np.array([5]), np.array([6]))]})
    write_json(manifest, {"likeliest_sha256": digest, "questions_sha256": "these"})
    assert read_likeliest(manifest, "these") == {"test": [([5], [6])]}
    with pytest.raises(UserError, match="is of other questions"):
        read_likeliest(manifest, "those")
    (tmp_path / "likeliest.jsonl").write_text("")
    with pytest.raises(UserError, match="kava evaluate --reference teacher"):
        read_likeliest(manifest, "these")


def test_a_task_without_generation_is_judged_by_likelihood_first() -> None:
    named = {
        (kind, generate): [metric.name for metric in scored(task_of(kind), generate)]
        for kind in ("gsm8k", "text")
        for generate in (True, False)
    }
    assert named["gsm8k", True] == ["strict_match", "flexible_extract", "answer_nll", "teacher_agreement"]
    assert named["gsm8k", False] == named["text", True] == named["text", False] == ["answer_nll", "teacher_agreement"]


def test_a_mean_is_of_the_questions_that_have_the_number() -> None:
    metrics = scored(task_of("text"), True)
    lines = [{"answer_nll": 1.0, "teacher_agreement": None}, {"answer_nll": 2.0, "teacher_agreement": 0.5}]
    assert judge.means(lines, metrics) == {"answer_nll": 1.5, "teacher_agreement": 0.5}
    assert judge.means(lines[:1], metrics) == {"answer_nll": 1.0, "teacher_agreement": None}


def test_a_likelihood_that_is_no_number_is_refused_with_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [AnswerScore(nll, np.array([1]), np.array([1])) for nll in (1.0, float("nan"), float("inf"))]
    monkeypatch.setattr(judge, "score_answers", lambda *_: scores)
    model = Placed(SimpleNamespace(name_or_path="the student"), torch.device("cpu"), in_turn)
    nothing = Questions("test", [], [], [], Path())
    of_text = judge.Judge(task_of("text"), Evaluation(), None)
    with pytest.raises(UserError, match=r"test row 1 is nan \(2 of 3 are no numbers\): logits of the student overflow"):
        of_text.judge(model, None, nothing)


def test_a_gold_answer_beyond_a_models_positions_or_rows_is_refused_with_its_question() -> None:
    config = tiny_model("qwen2").config
    ids = [np.array([5, 6, 7]), np.arange(3, 60).repeat(2)[:70]]
    with pytest.raises(UserError, match=r"test question 1 \(from 0\) has 70 tokens with its gold .* has 64 positions"):
        require_room("student", "tiny", config, Questions("test", [], ids, ids, Path()))
    with pytest.raises(UserError, match="has 61 embedding rows, and the data has the token id 99"):
        require_room("student", "tiny", config, Questions("test", [], [np.array([5, 99])], ids, Path()))
    require_room("student", "tiny", config, Questions("test", [], ids[:1], ids[:1], Path()))


def test_a_teacher_that_writes_nothing_is_judged_by_likelihood_and_students_as_ever() -> None:
    asked = Evaluation(teacher="likelihood")
    assert asked.of_teacher() == Evaluation(generate=False)
    assert asked.of_student() == Evaluation()
    assert "teacher" not in Evaluation().model_dump(), "keys of evaluations are those from before"


def test_a_teacher_that_wrote_nothing_has_no_marks_in_a_report_and_a_student_must_have_them(tmp_path: Path) -> None:
    metrics = scored(task_of("gsm8k"), True)
    line = {"doc_id": 0, "question": "q", "gold": "1", "answer": "", "answer_nll": 0.5, "teacher_agreement": 1.0}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    manifest: dict[str, Any] = {"answer_nll": 0.5, "teacher_agreement": 1.0, "n": 1}
    for generate in (False, True):
        spec = {"key": {"evaluation": {"generate": generate, "max_new_tokens": 8}}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"spec": spec}))
        (tmp_path / "cost.json").write_text(json.dumps({"seconds": 1.0, "peak_memory_mib": 1.0}))
        if generate:
            with pytest.raises(UserError, match="strict_match is None, it must be 0 or 1"):
                read_evaluation(tmp_path, metrics, [])
        else:
            found = read_evaluation(tmp_path, metrics, [])
            assert found.means["strict_match"] is None
            assert found.means["answer_nll"] == 0.5
