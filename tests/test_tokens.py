"""Ids, segments and labels of examples, on the real tokenizers and the real data."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from transformers import AutoTokenizer, GPT2Tokenizer
from zoo.data import GSM8K

import kava.demo
from kava.config import load_config
from kava.config.job import Runtime
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY
from kava.data.template import Template
from kava.data.tokenize import run
from kava.data.tokens import Segment, TokenSet, encode_example
from kava.tasks.demo import generate
from kava.tasks.gold import harness_gsm8k

TEMPLATE = Template("Question: {question}\nAnswer: {answer}")
ROW = {"question": "How many?", "answer": "2+3=<<2+3=5>>5 apples.\n#### 5"}


def rows(gsm8k: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (gsm8k / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer: Path):
    return AutoTokenizer.from_pretrained(qwen_tokenizer)


def parts(tokenizer, row: dict[str, str]) -> dict[int, str]:
    example = encode_example(GSM8K, tokenizer, TEMPLATE, row)
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
        example = encode_example(GSM8K, qwen, TEMPLATE, row)
        prompt = qwen(TEMPLATE.prompt(row["question"]))["input_ids"]
        assert example["input_ids"][: len(prompt)] == prompt
        assert example["segments"][: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_a_tokenizer_with_a_start_token_keeps_it_in_the_prompt(tinystories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tinystories)
    example = encode_example(GSM8K, tokenizer, TEMPLATE, ROW)
    start = tokenizer("")["input_ids"]
    assert example["input_ids"][: len(start)] == start
    assert example["segments"][0] == Segment.PROMPT
    assert example["input_ids"].count(tokenizer.eos_token_id) == 1
    assert set(example["segments"]) == set(Segment)
    assert example["segments"] == sorted(example["segments"])


@pytest.mark.slow
def test_gsm8k_has_1390694_training_tokens_of_qwen(qwen, gsm8k: Path) -> None:
    lengths = [len(encode_example(GSM8K, qwen, TEMPLATE, row)["input_ids"]) for row in rows(gsm8k, "train")]
    assert len(lengths) == 7473
    assert sum(lengths) == 1_390_694


def test_the_task_uses_the_harness_own_filters() -> None:
    filters = {entry["name"]: entry["filter"][0]["regex_pattern"] for entry in harness_gsm8k()["filter_list"]}
    assert filters["strict-match"] == r"#### (\-?[0-9\.\,]+)"
    assert set(filters) == {"strict-match", "flexible-extract"}


TWO = "There are 24/2=<<24/2=12>>12 pens.\nSo 12 + 3 = <<12+3=15>> 15 in all, <<15=15.00>>.\n#### 15"
NONE = "Half of ten is five.\n#### 5"


def test_equations_alone_stand_between_prompt_and_answer() -> None:
    assert GSM8K.equations_only(TWO) == "<<24/2=12>> <<12+3=15>> <<15=15.00>>\n#### 15"
    assert GSM8K.equations_only(NONE) == "\n#### 5"
    assert GSM8K.equations_only("#### 5") == "#### 5"


def test_equations_of_gsm8k_are_found_whole(gsm8k: Path) -> None:
    answers = [row["answer"] for row in rows(gsm8k, "train")]
    shortened = [GSM8K.equations_only(answer) for answer in answers]
    assert all(a.count("<<") == s.count("<<") == s.count(">>") for a, s in zip(answers, shortened, strict=True))
    assert all(a.split("\n")[-1] == s.split("\n")[-1] for a, s in zip(answers, shortened, strict=True))
    assert sum("<<" not in s for s in shortened) == 95
    assert sum(map(len, shortened)) < 0.5 * sum(map(len, answers))


@pytest.mark.parametrize("name", ["demo", "qwen2.5-tokenizer", "gpt2-tokenizer"])
def test_prompt_and_answer_of_the_student_are_the_teachers_tokens(name: str) -> None:
    """So that logits on answer tokens, and KV of prompt and answer, are compared one to one."""
    if name == "demo":
        tokenizer = AutoTokenizer.from_pretrained(Path(kava.demo.__file__).parent / "teacher")
        data = generate("train", 100, 0)
    else:
        folder, gsm8k = SHARED / "models" / name, SHARED / "data" / "gsm8k"
        if not (folder.exists() and gsm8k.exists()):
            pytest.skip(f"{name} or gsm8k is not beside this checkout; CI has it")
        tokenizer = (GPT2Tokenizer if name.startswith("gpt2") else AutoTokenizer).from_pretrained(folder)
        data = rows(gsm8k, "train")
        data = data[:150] + [row for row in data if "<<" not in row["answer"]][:50]
    for row in [*data, ROW | {"answer": NONE}]:
        short = row | {"answer": GSM8K.equations_only(row["answer"])}
        teacher, student = (encode_example(GSM8K, tokenizer, TEMPLATE, r) for r in (row, short))
        for segment in (Segment.PROMPT, Segment.ANSWER):
            ids = [
                [i for i, s in zip(example["input_ids"], example["segments"], strict=True) if s == segment]
                for example in (teacher, student)
            ]
            assert ids[0] == ids[1]
        assert len(student["input_ids"]) <= len(teacher["input_ids"])
        reasoning = parts(tokenizer, short)[Segment.REASONING]
        assert reasoning.strip() == short["answer"].split("####")[0].strip()


def token_set(folder: Path, *changes: tuple[str, object]) -> TokenSet:
    settings = {"cache_dir": str(folder), "data": {"kind": "demo", "train": 30, "validation": 4, "test": 5}}
    config = load_config(REPOSITORY / "config.yaml", settings | dict(changes))
    job = Jobs(config).tokenize
    run(job, Runtime.of(config))
    return TokenSet(job.output)


def test_a_student_that_reads_equations_has_columns_of_its_own_beside_the_teachers(tmp_path: Path) -> None:
    full, equations = token_set(tmp_path), token_set(tmp_path, ("student_reasoning", "equations"))
    assert full.student_ids["train"] is full.input_ids["train"]
    assert full.student_segments["train"] is full.segments["train"]
    assert full.folder != equations.folder
    assert full.questions_sha256 == equations.questions_sha256
    for split, count in (("train", 30), ("validation", 4)):
        facts = equations.manifest["splits"][split]
        assert len(equations.student_ids[split]) == count
        assert facts["student_tokens"] == sum(map(len, equations.student_ids[split])) < facts["tokens"]
        assert facts["without_equations"] == 0
        for name in ("input_ids", "segments"):
            pairs = zip(getattr(full, name)[split], getattr(equations, name)[split], strict=True)
            assert all(np.array_equal(*pair) for pair in pairs)
        assert full.manifest["splits"][split]["sha256"] != facts["sha256"]


def test_an_example_is_dropped_by_what_the_teacher_reads(tmp_path: Path) -> None:
    changes = ("student_reasoning", "equations"), ("max_length", 60)
    full, equations = token_set(tmp_path, changes[1]), token_set(tmp_path, *changes)
    assert full.manifest["splits"]["train"]["dropped"] == equations.manifest["splits"]["train"]["dropped"] > 0


def test_examples_without_equations_are_counted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.dumps({"question": "How many?", "answer": answer}) for answer in (TWO, NONE, NONE, TWO)]
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    tokens = token_set(
        tmp_path,
        ("data", {"kind": "gsm8k", "path": str(data), "validation": 1}),
        ("student_reasoning", "equations"),
    )
    assert [tokens.manifest["splits"][split]["without_equations"] for split in ("train", "validation")] == [2, 0]


def test_overlap_stands_in_the_manifest_and_is_added_to_one_without_it_and_nothing_else_is_written(
    tmp_path: Path,
) -> None:
    made = token_set(tmp_path)
    assert made.manifest["overlap"]["questions"] == 5
    assert made.manifest["overlap"]["same_question"]["count"] == 0
    path = made.folder / "manifest.json"
    written = path.read_bytes()
    path.write_text(json.dumps({name: value for name, value in made.manifest.items() if name != "overlap"}))
    others = {file: file.stat().st_mtime_ns for file in made.folder.rglob("*") if file.is_file() and file != path}
    token_set(tmp_path)
    assert json.loads(path.read_text()) == json.loads(written)
    assert {file: file.stat().st_mtime_ns for file in others} == others


def test_the_answer_begins_at_the_last_mark(qwen) -> None:
    text = parts(qwen, ROW | {"answer": "I write #### and then the sum.\n#### 5"})
    assert text[Segment.REASONING] == " I write #### and then the sum.\n"
    assert text[Segment.ANSWER] == "#### 5" + qwen.eos_token
