"""Test questions that stand in the training data, as they are or in runs of eight words."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kava.data.overlap import NAMED, find_overlap, normalised, word_ngrams
from kava.tasks.demo import generate

WORDS = "a train leaves the station at noon with twelve waggons"


def splits(train: list[str], test: list[str], validation: tuple[str, ...] = ()) -> dict[str, list[dict[str, str]]]:
    texts = {"train": train, "validation": list(validation), "test": test}
    return {split: [{"question": text} for text in of_split] for split, of_split in texts.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $1,000 – why?", "it costs 1 000 why"),
        ("  Two\n\tlines ", "two lines"),
        ("STRAẞE straße STRASSE", "strasse strasse strasse"),
        ("ﬁve １２ ½", "five 12 1 2"),
        ("cafe\u0301", "caf\u00e9"),
        ("snake_case", "snake case"),
        ("?!", ""),
    ],
)
def test_questions_are_compared_without_case_width_spaces_and_punctuation(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_the_same_question_is_found_in_either_split_and_named_with_its_row() -> None:
    found = find_overlap(splits(["One?", "How many?"], ["how  MANY", "Other", "held out"], ("Held-out!",)))
    assert found["same_question"] == {
        "count": 2,
        "found": [{"doc_id": 0, "split": "train", "row": 1}, {"doc_id": 2, "split": "validation", "row": 0}],
    }
    assert found["questions"] == 3


def test_eight_words_in_a_row_are_a_shared_run_and_seven_are_none() -> None:
    words = WORDS.split()
    seven = " ".join(["then", *words[:7], "again", "and", "again"])
    eight = " ".join(["Then,", *words[:8], "again", "and", "again"])
    found = find_overlap(splits([WORDS.title()], [seven, eight, " ".join(words[:8])]))
    assert [row["doc_id"] for row in found["shared_ngram"]["found"]] == [1, 2]
    assert found["shared_ngram"]["found"][0]["words"] == " ".join(words[:8])
    # One run of four is shared in the second question, the only one in the third.
    assert found["mostly_shared"]["count"] == 1
    assert found["same_question"]["count"] == 0


def test_runs_do_not_reach_from_one_question_into_the_next() -> None:
    half = WORDS.split()
    assert find_overlap(splits([" ".join(half[:5]), " ".join(half[5:])], [WORDS]))["shared_ngram"]["count"] == 0
    assert word_ngrams(" ".join(half[:7])) == set()


def test_all_are_counted_and_a_few_named() -> None:
    texts = [f"{WORDS} number {i}" for i in range(20)]
    found = find_overlap(splits(texts, texts))
    for name in ("same_question", "shared_ngram"):
        assert found[name]["count"] == 20
        assert [row["doc_id"] for row in found[name]["found"]] == list(range(NAMED))


def test_the_demo_asks_no_question_of_its_training_data_though_all_are_of_its_templates() -> None:
    found = find_overlap(
        {split: generate(split, n, 0) for split, n in (("train", 300), ("validation", 20), ("test", 50))}
    )
    assert found["same_question"]["count"] == 0
    assert found["shared_ngram"]["count"] > 40


def test_gsm8k_asks_none_of_its_training_questions_and_80_share_a_run(gsm8k: Path) -> None:
    rows = {
        split: [json.loads(line) for line in (gsm8k / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }
    started = time.process_time()
    found = find_overlap({"train": rows["train"][:-200], "validation": rows["train"][-200:], "test": rows["test"]})
    assert time.process_time() - started < 10
    counts = {name: found[name]["count"] for name in ("same_question", "shared_ngram", "mostly_shared")}
    assert counts == {"same_question": 0, "shared_ngram": 80, "mostly_shared": 0}
