"""One prompt for training and evaluation, and answers that come back from their ids, whatever the tokenizer."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, tiny_model
from test_tokens import token_set
from transformers import AutoTokenizer, GPT2Tokenizer
from zoo import tokenizers as zoo
from zoo.data import GSM8K

import kava.demo
from kava.config.models import ModelSettings
from kava.data.doubts import tokenizer_doubts
from kava.data.prompt import prompt_ids, text_ids
from kava.data.template import Template
from kava.data.tokens import Segment, encode_example
from kava.evaluation.harness import RowwiseStop
from kava.models.load import load_tokenizer
from kava.report.notices import token_warnings
from kava.tasks.demo import generate

TEMPLATE = Template("Question: {question}\nAnswer: {answer}")
ROWS = [
    {"question": "How many apples are there in 2 bags of 3?", "answer": "2*3=<<2*3=6>>6 apples.\n#### 6"},
    {"question": "Ann has 10 pens and 4 more. How many?", "answer": "10+4=<<10+4=14>>14 in all.\n#### 14"},
    {"question": "How many?", "answer": "#### 104"},
]
REAL = ("demo", "qwen2.5-tokenizer", "gpt2-tokenizer", "tinystories-656k")
# Each of its pieces ends in the space after a word: `: ` is one token, half of it prompt.
MERGING = "tinystories-656k"


def tokenizer_of(name: str, folder: Path) -> Any:
    if name == "demo":
        return load_tokenizer(ModelSettings(model=str(Path(kava.demo.__file__).parent / "teacher")))
    if name in REAL:
        path = SHARED / "models" / name
        if not path.exists():
            pytest.skip(f"{name} is not beside this checkout; CI has it")
        loaded = (GPT2Tokenizer if name.startswith("gpt2") else AutoTokenizer).from_pretrained(path)
        loaded.pad_token = loaded.pad_token or loaded.eos_token
        return loaded
    return load_tokenizer(ModelSettings(model=str(zoo.GOOD[name](folder))))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("name", [*zoo.GOOD, *REAL])
def test_evaluation_asks_the_prompt_of_training(name: str, tmp_path: Path, model: Any) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    harness = RowwiseStop(pretrained=model, tokenizer=tokenizer, batch_size=4)
    prompts = [TEMPLATE.prompt(row["question"]) for row in ROWS]
    batch, mask = harness.tok_batch_encode(prompts)
    for row, prompt, padded, real in zip(ROWS, prompts, batch, mask, strict=True):
        asked = padded[real.bool()].tolist()
        example = encode_example(GSM8K, tokenizer, TEMPLATE, row)
        assert asked == harness.tok_encode(prompt) == prompt_ids(tokenizer, prompt)
        assert padded[~real.bool()].tolist() == [tokenizer.pad_token_id] * int((real == 0).sum())
        assert asked[-1] != tokenizer.eos_token_id
        assert example["input_ids"].count(tokenizer.eos_token_id) == 1
        assert example["segments"] == sorted(example["segments"])
        trained = [i for i, s in zip(*example.values(), strict=True) if s == Segment.PROMPT]
        assert (trained == asked) is (name != MERGING)
        assert example["input_ids"][: len(trained)] == trained


def test_a_start_token_that_the_text_spells_out_stands_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(model=str(zoo.bos_and_eos(tmp_path / "both"))))
    ids, offsets = text_ids(tokenizer, "<s>5")
    assert ids == [tokenizer.bos_token_id, *text_ids(tokenizer, "5").ids[1:]]
    assert offsets[-1] == (3, 4)
    plain = load_tokenizer(ModelSettings(model=str(zoo.byte_level(tmp_path / "plain"))))
    assert text_ids(plain, "<s>5</s>").ids[::2] == [plain.bos_token_id, plain.eos_token_id]


def test_an_answer_that_spells_its_end_token_out_has_one(tmp_path: Path) -> None:
    for build in (zoo.byte_level, zoo.eos_appending):
        tokenizer = load_tokenizer(ModelSettings(model=str(build(tmp_path / build.__name__))))
        ids = encode_example(GSM8K, tokenizer, TEMPLATE, ROWS[0] | {"answer": "#### 6</s>"})["input_ids"]
        assert ids == encode_example(GSM8K, tokenizer, TEMPLATE, ROWS[0] | {"answer": "#### 6"})["input_ids"]


@pytest.mark.parametrize("name", [*zoo.GOOD, *REAL])
def test_a_tokenizer_that_can_write_answers_is_not_doubted(name: str, tmp_path: Path) -> None:
    found = tokenizer_doubts(GSM8K, tokenizer_of(name, tmp_path), TEMPLATE, ROWS)
    if name == MERGING:
        assert "merges the end of the prompt" in found.pop()
        assert "#### and numbers: in 100.0% of 3 rows" in found.pop()
    if name == "word_level":
        assert "apples . # # # # 6')" in found.pop()
    assert not found


@pytest.mark.parametrize(
    ("build", "share"),
    [(zoo.without_marks, "100.0%"), (zoo.dropping_marks, "100.0%"), (zoo.without_digits, "100.0%"),
     (zoo.without_eights, "50.0%")],
)  # fmt: skip
def test_marks_that_do_not_come_back_are_said_with_their_share(build: Any, share: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(model=str(build(tmp_path))))
    rows = [{"question": "How many?", "answer": f"1+{n}.\n#### {n + 1}"} for n in (1, 7)]
    (sentence,) = tokenizer_doubts(GSM8K, tokenizer, TEMPLATE, rows)
    assert f"in {share} of 2 rows they do not come back" in sentence


def test_many_rows_are_read_evenly_spread(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(model=str(zoo.without_digits(tmp_path))))
    (sentence,) = tokenizer_doubts(GSM8K, tokenizer, TEMPLATE, ROWS * 400)
    assert "100.0% of 400 rows" in sentence


def test_a_doubt_stands_in_log_manifest_and_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a tokenizer without one leaves a manifest as it always was."""
    monkeypatch.setattr("kava.data.tokenize.check_model", lambda _: True)  # a tokenizer alone has no weights
    good = token_set(tmp_path)
    assert "warnings" not in good.manifest
    assert not any("tokenizer" in record.message for record in caplog.records)
    model = str(zoo.without_digits(tmp_path / "model"))
    sources = ("teacher", {"model": model}), ("student", {"model": model})
    with caplog.at_level(logging.WARNING, "kava"):
        made = token_set(tmp_path, *sources, ("max_length", 512))
    (sentence,) = made.manifest["warnings"]
    assert "of 30 rows they do not come back" in sentence
    assert f"warning: {sentence}" in caplog.messages
    # One that was made before this was looked at is amended, and its examples are left alone.
    path = made.folder / "manifest.json"
    path.write_text(json.dumps({name: value for name, value in made.manifest.items() if name != "warnings"}))
    before = {file: file.stat().st_mtime_ns for file in (made.folder / "examples").rglob("*.arrow")}
    assert token_set(tmp_path, *sources, ("max_length", 512)).manifest == made.manifest
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert token_warnings({"a": made.manifest}) == [sentence]
    assert token_warnings({"a": made.manifest, "b": good.manifest}) == [f"a: {sentence}"]


def test_the_demo_is_read_as_ever() -> None:
    tokenizer = tokenizer_of("demo", Path())
    for row in generate("train", 20, 0):
        text = TEMPLATE.fill(row)
        assert encode_example(GSM8K, tokenizer, TEMPLATE, row)["input_ids"] == [
            *tokenizer(text)["input_ids"], tokenizer.eos_token_id
        ]  # fmt: skip
