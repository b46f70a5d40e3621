"""A teacher that answers nothing is known before students are trained."""

from pathlib import Path

import pytest
from zoo.data import GSM8K

FILE = Path("results/references/teacher-x/samples.jsonl")


def sample(answer: str, strict: int = 0, flexible: int = 0) -> dict:
    return {"answer": answer, "strict_match": strict, "flexible_extract": flexible}


def test_a_teacher_that_scores_nothing_is_a_sentence_that_says_what_to_change() -> None:
    said = GSM8K.hopeless([sample("so it is 4"), sample("#### 5"), sample("")], FILE)
    assert said is not None
    assert "answered none of 3 questions right under either filter, 2 without `####`" in said
    assert str(FILE) in said
    assert "raise evaluation.max_new_tokens" in said


@pytest.mark.parametrize("right", [sample("#### 4", 1, 1), sample("it is 4", 0, 1), sample("#### 4, not 5", 1, 0)])
def test_one_right_answer_under_either_filter_is_hope(right: dict) -> None:
    assert GSM8K.hopeless([sample("no"), right], FILE) is None
