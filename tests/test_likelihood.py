"""The negative log-likelihood of answers: against float64, one example and one token at a time, whatever the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from scipy.special import log_softmax

from kava.data.tokens import Segment
from kava.errors import UserError
from kava.evaluation import evaluate, likelihood
from kava.evaluation.likelihood import answer_nll, batches

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


def test_a_likelihood_that_is_no_number_is_refused_with_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "answer_nll", lambda *_: [1.0, float("nan"), float("inf")])
    tokens, model = SimpleNamespace(test_ids=[], test_segments=[]), SimpleNamespace(name_or_path="the student")
    with pytest.raises(UserError, match=r"test row 1 is nan \(2 of 3 are no numbers\): logits of the student overflow"):
        evaluate.likelihoods(model, tokens, 1)  # type: ignore[arg-type]
