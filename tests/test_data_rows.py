"""Rows as users bring them: what the filters of the harness read of them, and what is said of the rest."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from test_answer_extraction import TEMPLATE, Canned
from test_tokens import token_set
from zoo.data import CUT, GSM8K, READ, REFUSED, SPELLED, gsm8k_data, rows, save_to_disk, write_lines, write_parquet

from kava.config import load_config
from kava.config.data import Gsm8kData
from kava.config.jobs import Jobs
from kava.data.rows import load_rows
from kava.data.task import write_task
from kava.data.tokens import Segment
from kava.doctor.sources import sources
from kava.errors import UserError
from kava.evaluation.harness import samples, score
from kava.plan import tokens as plan_tokens
from kava.plan.tokens import count_tokens
from kava.report.notices import token_warnings
from kava.tasks.gold import spelled, unmatched


def marks(endings: list[str], folder: Path) -> list[tuple[int, int]]:
    """Marks that the harness gives to a model that writes each gold text."""
    of_endings = [rows(1, ending, f"{n}")[0] for n, ending in enumerate(endings)]
    write_task(folder, of_endings, TEMPLATE, GSM8K.harness)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # As `generate` ends an answer at a stop string.
    answers = {r["question"]: r["answer"].split("</s>")[0].split("<|im_end|>")[0] for r in of_endings}
    lines = samples(score(Canned(answers), folder, 256), GSM8K.harness)
    return [(line["strict_match"], line["flexible_extract"]) for line in lines]


def test_what_is_accepted_counts_as_right_in_the_harness_and_what_is_refused_does_not(tmp_path: Path) -> None:
    endings = [*READ, *SPELLED.values()]
    assert marks(endings, tmp_path) == [(1, 1)] * len(endings)
    wrong = [ending for ending in (*SPELLED, *REFUSED) if ending != "#### ..."]  # equal to itself, and no number
    assert [ending for ending, mark in zip(wrong, marks(wrong, tmp_path), strict=True) if mark == (1, 1)] == []


@pytest.mark.parametrize("ending", READ)
def test_gold_that_the_filters_read_is_left_to_the_byte(ending: str, tmp_path: Path) -> None:
    loaded = load_rows(gsm8k_data(write_lines(tmp_path, rows(5, ending), rows(2, ending, "test"))))
    assert loaded.splits["train"] == rows(4, ending)
    assert loaded.splits["test"] == rows(2, ending, "test")
    assert loaded.warnings == []


@pytest.mark.parametrize(("ending", "right"), SPELLED.items())
def test_gold_whose_meaning_is_plain_is_spelled_for_the_filters_in_every_split(
    ending: str, right: str, tmp_path: Path
) -> None:
    loaded = load_rows(gsm8k_data(write_lines(tmp_path, rows(5, ending), rows(2, ending, "test"))))
    assert loaded.splits["train"] + loaded.splits["validation"] == rows(5, right)
    assert loaded.splits["test"] == rows(2, right, "test")
    assert len(loaded.warnings) == 3
    assert loaded.warnings[0].startswith("train: 4 of 4 answers are written in a way that the filters do not read")


@pytest.mark.parametrize("ending", [*REFUSED, CUT])
def test_gold_that_no_answer_can_match_is_refused_in_either_split(ending: str, tmp_path: Path) -> None:
    for train, test in ((ending, "#### 18"), ("#### 18", ending)):
        data = gsm8k_data(write_lines(tmp_path, rows(3, train), rows(2, test, "test")))
        with pytest.raises(UserError, match=r"no answer can match 2 of 2 gold .*has to end in '#### <number>'"):
            load_rows(data)


def test_a_few_that_cannot_be_matched_are_named_and_counted(tmp_path: Path) -> None:
    test = rows(300, what="test")
    for row in (7, 9):
        test[row] = rows(1, "#### 50%", f"odd {row}")[0]
    loaded = load_rows(gsm8k_data(write_lines(tmp_path, rows(9), test)))
    assert loaded.splits["test"] == test
    assert loaded.warnings == [
        "test: no answer can match 2 of 300 gold answers (row 7, 9: the first ends in '#### 50%', of which "
        "strict-match reads '50'); correct or drop these rows."
    ]
    test[3:6] = rows(3, "#### Vienna", "odd")
    with pytest.raises(UserError, match=r"no answer can match 5 of 300 gold answers \(row 3, 4, 5, 7, 9"):
        load_rows(gsm8k_data(write_lines(tmp_path, rows(9), test)))


def test_rows_without_the_mark_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train row 0 has no '####' .*\(4 of 4 rows have none\).*'#### <number>'"):
        load_rows(gsm8k_data(write_lines(tmp_path, rows(5, "It is 18."), rows(2))))
    with pytest.raises(UserError, match="test row 1 has no '####' in its answer ''"):
        load_rows(gsm8k_data(write_lines(tmp_path, rows(5), [*rows(1), {"question": "why?", "answer": ""}])))


def test_a_number_alone_is_an_answer(tmp_path: Path) -> None:
    short = [{"question": f"{n}?", "answer": "#### 5"} for n in range(4)]
    assert load_rows(gsm8k_data(write_lines(tmp_path, short, short))).warnings == []


def test_gsm8k_is_read_as_it_stands_within_a_second(gsm8k: Path) -> None:
    data = Gsm8kData(path=str(gsm8k))
    unmatched(["#### 5"])  # imports
    splits = load_rows(data).splits
    answers = [row["answer"] for of_split in splits.values() for row in of_split]
    assert len(answers) == 8_792
    started = time.process_time()
    assert unmatched(answers) == []
    assert time.process_time() - started < 2, "half a second on an idle core"
    loaded = load_rows(data)
    assert loaded.splits == splits
    assert loaded.warnings == []
    assert loaded.notes == ["validation is the last 128 of 7473 training rows; train is the first 7345"]


def test_the_token_set_is_that_of_data_written_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: dict[str, Any] = {}
    for name, ending in (("right", "#### 18"), ("wrong", "####18 \r\n")):
        folder = write_lines(tmp_path / name, rows(12, ending), rows(3, ending, "test"))
        data = {"kind": "gsm8k", "path": str(folder), "validation": 2}
        made[name] = token_set(tmp_path / "cache", ("data", data))
    right, wrong = made["right"], made["wrong"]
    assert wrong.manifest["splits"] == right.manifest["splits"]
    for file in (right.task_folder).iterdir():
        if file.is_file():
            assert (wrong.task_folder / file.name).read_bytes() == file.read_bytes()
    assert "warnings" not in right.manifest
    said = [f"{split}: {n} of {n} answers" for split, n in (("train", 10), ("validation", 2), ("test", 3))]
    warnings = wrong.manifest["warnings"]
    assert [start for start, text in zip(said, warnings, strict=True) if text.startswith(start)] == said
    assert all(f"warning: {text}" in caplog.messages for text in warnings)
    assert token_warnings({"demo": wrong.manifest}) == warnings
    assert token_warnings({"a": wrong.manifest, "b": right.manifest})[0].startswith("a: train: 10 of 10")
    assert Segment.ANSWER in right.segments["train"][0]


def test_warnings_are_added_to_a_manifest_without_them(tmp_path: Path) -> None:
    data = {"kind": "gsm8k", "path": str(write_lines(tmp_path / "data", rows(5), rows(2))), "validation": 2}
    made = token_set(tmp_path, ("data", data))
    assert "validation is the last 2 of 5 training rows, 40% of them" in made.manifest["warnings"][0]
    path = made.folder / "manifest.json"
    path.write_text(json.dumps({name: value for name, value in made.manifest.items() if name != "warnings"}))
    assert token_set(tmp_path, ("data", data)).manifest == made.manifest


def test_questions_that_stand_twice_are_counted(tmp_path: Path) -> None:
    train = rows(12)
    train[10] = train[0] | {"question": train[0]["question"].upper()}
    test = rows(4, what="test")
    test[2] = test[3] = test[0]
    loaded = load_rows(gsm8k_data(write_lines(tmp_path, train, test), validation=2))
    first, second = loaded.warnings
    assert first.startswith("1 of 2 validation questions is in the training rows too (validation row 0)")
    assert second.startswith("2 of 4 test questions are in the test split before, which has 2 different ones")


@pytest.mark.parametrize(
    ("total", "validation", "warned"), [(300, 128, True), (10, 2, False), (11, 3, True), (2, 1, False)]
)
def test_what_validation_takes_is_said(total: int, validation: int, warned: bool, tmp_path: Path) -> None:
    loaded = load_rows(gsm8k_data(write_lines(tmp_path, rows(total), rows(2, what="test")), validation))
    assert loaded.notes == [
        f"validation is the last {validation} of {total} training rows; train is the first {total - validation}"
    ]
    assert bool(loaded.warnings) == warned


GOOD = json.dumps({"question": "How many?", "answer": "#### 5"})
LINES = {
    "a lone surrogate": (r'{"question": "\ud800?", "answer": "#### 5"}', "question holds half of a surrogate pair"),
    "one in the answer": (r'{"question": "a?", "answer": "\udc00 #### 5"}', "answer holds half of a surrogate pair"),
    "NUL": (r'{"question": "a\u0000?", "answer": "#### 5"}', "question holds a NUL character"),
    "NUL as a byte": ('{"question": "a\0?", "answer": "#### 5"}', "Invalid control character"),
    "null": ('{"question": "a?", "answer": null}', "answer is null"),
    "a number": ('{"question": "a?", "answer": 5}', "answer is float"),
    "a list": ('[{"question": "a?", "answer": "#### 5"}]', "it is a list"),
    "other fields": ('{"prompt": "a?", "response": "#### 5"}', "question is missing; there is prompt, response"),
    "no field": ("{}", "question is missing; there is nothing"),
    "an empty question": ('{"question": " ", "answer": "#### 5"}', "question is empty"),
    "a key twice": ('{"question": "a?", "question": "b?", "answer": "#### 5"}', "question is there twice"),
    "two on a line": (GOOD + GOOD, "Extra data"),
    "a comma behind": (GOOD + ",", "Extra data"),
    "brackets without end": ("[" * 100_000, "recursion"),
}


@pytest.mark.parametrize(("line", "wrong"), LINES.values(), ids=LINES)
def test_a_line_that_is_no_row_is_named_with_what_is_wrong(line: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"train\.jsonl, line 2: expected a JSON object .*{wrong}.*correct or drop it"):
        load_rows(gsm8k_data(write_lines(tmp_path, [GOOD, line, GOOD], [GOOD])))


def test_lines_are_read_with_a_byte_order_mark_blank_lines_and_huge_numbers(tmp_path: Path) -> None:
    pair = r'{"question": "\ud83d\ude00?", "answer": "#### 5"}'
    huge = '{"question": "a?", "answer": "#### 5", "id": ' + "9" * 5_000 + "}"
    folder = write_lines(tmp_path, [GOOD, "", pair, " \r", huge + "\r", ""], [GOOD], b"\xef\xbb\xbf")
    loaded = load_rows(gsm8k_data(folder)).splits
    assert [row["question"] for row in loaded["train"] + loaded["validation"]] == ["How many?", "\U0001f600?", "a?"]


def test_no_rows_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test of .* has no rows \(test\.jsonl is empty\)"):
        load_rows(gsm8k_data(write_lines(tmp_path, rows(3), [])))


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"question": "a?", "answer": None}, "answer is null, in row 1"),
        ({"question": "", "answer": "#### 5"}, "question is empty, in row 1"),
        ({"question": "a?", "answer": "\0#### 5"}, "answer holds a NUL character, in row 1"),
    ],
)
def test_rows_of_other_formats_are_held_to_the_same(row: dict[str, str], wrong: str, tmp_path: Path) -> None:
    for write in (write_parquet, save_to_disk):
        folder = write(tmp_path / write.__name__, [*rows(1), row, *rows(1)], rows(1))
        with pytest.raises(UserError, match=rf"train of .* cannot be read from .* \(.*{wrong}\)"):
            load_rows(gsm8k_data(folder))


def config(folder: Path, **data: Any) -> Any:
    settings = {"data": {"kind": "gsm8k", "path": str(folder), **data}, "cache_dir": str(folder / "cache")}
    return load_config(None, {"preset": "demo", **settings})


def doctor(folder: Path, **data: Any) -> Any:
    (check,) = (line for line in sources(config(folder, **data), "kava fetch").checks if line.name == "data")
    return check


def test_doctor_looks_at_the_rows(tmp_path: Path) -> None:
    write_lines(tmp_path, rows(50), rows(3, what="test"))
    check = doctor(tmp_path, validation=5)
    assert check.status == "ok"
    assert "JSON lines, 45 train, 5 validation, 3 test rows, with '#### <number>' at the end of answers" in str(check)
    assert doctor(tmp_path, validation=20).status == "warning"
    assert "leaves no training example of 50; lower it" in str(doctor(tmp_path, validation=50))
    write_lines(tmp_path, rows(50), rows(3, "#### Vienna"))
    check = doctor(tmp_path, validation=5)
    assert check.status == "fail"
    assert "no answer can match 3 of 3 gold answers (row 0, 1, 2: the first ends in '#### Vienna'" in str(check)


def test_the_plan_reads_rows_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rows, some of them too long: near what `kava tokenize` then counts, with the tokenizer and without."""
    train = [{"question": "Tom has 3 apples? " * (1 + n % 5), "answer": f"He has {n}.\n#### {n}"} for n in range(1_000)]
    write_lines(tmp_path, train, rows(3, what="test"))
    settings = config(tmp_path, validation=100)
    plan = Jobs(settings)
    estimate = count_tokens(plan)
    assert not estimate.known
    made = token_set(tmp_path / "cache", ("data", settings.data.model_dump()))
    known = count_tokens(plan)
    assert known.known
    assert made.manifest["splits"]["train"]["dropped"] == 0
    assert estimate.examples == known.examples == 1_000
    assert estimate.tokens == pytest.approx(known.tokens, rel=0.02)
    shorter = Jobs(settings.model_copy(update={"max_length": 32}))
    assert 0 < count_tokens(shorter).examples < 1_000
    monkeypatch.setattr(plan_tokens, "_folder", lambda _, role, path: Path(path) if role == "data" else None)
    characters = sum(len(f"Question: {row['question']}\nAnswer: {row['answer']}") for row in train)
    by_characters = count_tokens(Jobs(settings.model_copy(update={"max_length": 256})))
    assert by_characters.examples == 1_000
    assert by_characters.tokens == pytest.approx(characters / GSM8K.lengths.characters_per_token, rel=0.02)


def test_data_of_ones_own_below_the_demos_kind_names_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'path' names data of your own.*set kind: gsm8k beside it"):
        load_config(None, {"preset": "demo", "data": {"path": str(tmp_path)}})


def test_the_spelling_is_that_of_the_zoo() -> None:
    for ending, right in SPELLED.items():
        assert spelled(f"Some steps.\n{ending}") == f"Some steps.\n{right}"
