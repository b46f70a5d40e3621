"""Ids, segments and labels of examples, on the real tokenizers and the real data."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from kava.data.task import harness_gsm8k
from kava.data.tokens import Segment, encode_example

TEMPLATE = "Question: {question}\nAnswer: {answer}"
ROW = {"question": "How many?", "answer": "2+3=<<2+3=5>>5 apples.\n#### 5"}


def rows(gsm8k: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (gsm8k / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer: Path):
    return AutoTokenizer.from_pretrained(qwen_tokenizer)


def parts(tokenizer, row: dict[str, str]) -> dict[int, str]:
    example = encode_example(tokenizer, TEMPLATE, row)
    return {
        segment: tokenizer.decode([i for i, s in zip(*example.values(), strict=True) if s == segment])
        for segment in Segment
    }


def test_segments_are_prompt_reasoning_and_answer_with_its_end_token(qwen) -> None:
    text = parts(qwen, ROW)
    assert text[Segment.PROMPT] == "Question: How many?\nAnswer:"
    assert text[Segment.REASONING] == " 2+3=<<2+3=5>>5 apples.\n"
    assert text[Segment.ANSWER] == "#### 5" + qwen.eos_token


def test_prompt_ids_are_those_of_the_prompt_alone(qwen, gsm8k: Path) -> None:
    """What the student is asked at evaluation is what it saw in training."""
    for row in rows(gsm8k, "test")[:200]:
        example = encode_example(qwen, TEMPLATE, row)
        prompt = qwen(TEMPLATE.format(question=row["question"], answer="").rstrip())["input_ids"]
        assert example["input_ids"][: len(prompt)] == prompt
        assert example["segments"][: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_a_tokenizer_with_a_start_token_keeps_it_in_the_prompt(tinystories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tinystories)
    example = encode_example(tokenizer, TEMPLATE, ROW)
    start = tokenizer("")["input_ids"]
    assert example["input_ids"][: len(start)] == start
    assert example["segments"][0] == Segment.PROMPT
    assert example["input_ids"].count(tokenizer.eos_token_id) == 1
    assert set(example["segments"]) == set(Segment)
    assert example["segments"] == sorted(example["segments"])


@pytest.mark.slow
def test_gsm8k_has_1390694_training_tokens_of_qwen(qwen, gsm8k: Path) -> None:
    lengths = [len(encode_example(qwen, TEMPLATE, row)["input_ids"]) for row in rows(gsm8k, "train")]
    assert len(lengths) == 7473
    assert sum(lengths) == 1_390_694


def test_the_task_uses_the_harness_own_filters() -> None:
    filters = {entry["name"]: entry["filter"][0]["regex_pattern"] for entry in harness_gsm8k()["filter_list"]}
    assert filters["strict-match"] == r"#### (\-?[0-9\.\,]+)"
    assert set(filters) == {"strict-match", "flexible-extract"}
