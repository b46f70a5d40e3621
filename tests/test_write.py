"""The teacher writes the training answers: counts, kills, batches, and what is trained on then."""

import json
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workflow_runs import contents
from zoo.data import write_lines

from kava.bench.workspace import free
from kava.cli import main
from kava.config.job import Runtime
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY, load_config
from kava.data import tokenize
from kava.data.answers import WrittenAnswer, read_shard
from kava.data.rows import load_rows
from kava.data.tokens import Segment, TokenSet
from kava.errors import Interrupted, UserError
from kava.evaluation import write
from kava.evaluation.harness import prepare
from kava.files import read_json
from kava.models.load import load_for_evaluation, load_tokenizer

CONFIG = REPOSITORY / "config.yaml"
QUESTIONS = 9
SMALL: dict[str, Any] = {"train": QUESTIONS, "validation": 3, "test": 3}
GREEDY: dict[str, Any] = {"kind": "teacher", "batch_size": 3, "shard_questions": 4, "max_new_tokens": 60}
DRAWN: dict[str, Any] = GREEDY | {"temperature": 1.3, "samples": 3, "seed": 7, "batch_size": 12}


def plan(folder: Path, answers: Any, **data: Any) -> Jobs:
    # In NF4 a batch of one is multiplied by another kernel, and rounds otherwise.
    teacher = {"quantization": "none"}
    settings = {"cache_dir": str(folder), "teacher": teacher, "data": SMALL | data | {"answers": answers}}
    return Jobs(load_config(CONFIG, settings))


def run(jobs: Jobs) -> Path:
    """Run the stage; its folder."""
    free(torch.device("cpu"))
    assert jobs.write
    write.run(jobs.write, Runtime.of(jobs.config))
    return jobs.write.output.parent


def lines_of(folder: Path) -> list[WrittenAnswer]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in read_shard(path)]


def number(text: str) -> str:
    """Behind the mark, by an expression of this file."""
    (found,) = re.findall(r"\n#### (\d+)$", text)
    return found


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Finished."""
    jobs = plan(tmp_path_factory.mktemp("greedy"), GREEDY)
    run(jobs)
    return jobs


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Finished; at this temperature the teacher makes mistakes."""
    jobs = plan(tmp_path_factory.mktemp("drawn"), DRAWN)
    run(jobs)
    return jobs


@pytest.mark.parametrize("kind", ["greedy", "drawn"])
def test_every_question_and_answer_is_counted_and_what_is_kept_has_the_gold_number(
    kind: str, request: pytest.FixtureRequest
) -> None:
    jobs: Jobs = request.getfixturevalue(kind)
    assert jobs.write
    facts, lines = read_json(jobs.write.output), lines_of(jobs.write.output.parent)
    samples = jobs.write.spec.key.answers.samples
    assert [(line.question, line.sample) for line in lines] == [
        (q, s) for q in range(QUESTIONS) for s in range(samples)
    ]
    rows = load_rows(jobs.config.data).splits["train"]
    gold = [number(row["answer"]) for row in rows]
    kept = [line for line in lines if line.kept]
    assert all(number(str(line.answer)) == gold[line.question] for line in kept)
    # Of what is not kept, each is wrong, cut, or there already.
    for line in set(lines) - set(kept):
        again = any((line.question, line.answer) == (x.question, x.answer) for x in kept if x.sample < line.sample)
        assert again or not line.ended or f"#### {gold[line.question]}" not in line.text
    questions = {line.question for line in kept}
    counts = facts["questions"]
    assert counts == {
        "asked": QUESTIONS, "kept": len(questions), "gold": QUESTIONS - len(questions), "dropped": 0,
    }  # fmt: skip
    assert facts["answers"]["written"] == QUESTIONS * samples
    assert facts["answers"]["kept"] == len(kept) == len({(line.question, line.answer) for line in kept})
    assert facts["answers"]["right"] == sum(bool(line.right) for line in lines)
    if kind == "drawn":
        assert 0 < facts["answers"]["right"] < len(lines)


def test_what_is_trained_on_is_the_teachers_words_and_validation_and_test_are_as_they_were(
    drawn: Jobs, tmp_path: Path
) -> None:
    assert drawn.write
    gold = plan(tmp_path, "gold")
    for jobs in (drawn, gold):
        tokenize.run(jobs.tokenize, Runtime.of(jobs.config))
    tokens, of_gold = (TokenSet(jobs.tokenize.output) for jobs in (drawn, gold))
    tokenizer = load_tokenizer(drawn.config.teacher)
    answers = [
        tokenizer.decode(ids[segments != Segment.PROMPT], skip_special_tokens=True).strip()
        for ids, segments in zip(tokens.input_ids["train"], tokens.segments["train"], strict=True)
    ]
    lines = lines_of(drawn.write.output.parent)
    expected: list[str] = []
    for place, row in enumerate(load_rows(drawn.config.data).splits["train"]):
        own = list(dict.fromkeys(str(line.answer) for line in lines if line.question == place and line.right))
        expected += own or [row["answer"]]
    assert answers == expected
    for split in ("validation", "test"):
        assert tokens.manifest["splits"][split] == of_gold.manifest["splits"][split]
    assert tokens.manifest["answers"]["questions"] == read_json(drawn.write.output)["questions"]
    assert "answers" not in of_gold.manifest


def test_drawn_answers_are_their_seeds_and_questions_own_whatever_the_batch(drawn: Jobs, tmp_path: Path) -> None:
    assert drawn.write
    found = {(line.question, line.sample): line for line in lines_of(drawn.write.output.parent)}
    assert len({line.text for line in found.values() if line.question == 0}) > 1
    free(torch.device("cpu"))
    model = load_for_evaluation(drawn.config.teacher, torch.device("cpu"))
    for change, same in (({"batch_size": 1}, True), ({"seed": 8}, False)):
        jobs = plan(tmp_path, DRAWN | change)
        assert jobs.write
        questions = write.Questions(jobs.write, Runtime.of(jobs.config))
        prepare(model, questions.tokenizer)
        for asked in [(0, 0), (0, 2), (5, 1)]:
            (line,) = questions.write(model, [asked])
            assert ((line.text, line.tokens) == (found[asked].text, found[asked].tokens)) == same


def test_an_interrupted_writing_goes_on_to_the_same_bytes(
    greedy: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert greedy.write
    jobs = plan(tmp_path, GREEDY)
    whole, calls = write.generate, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the middle of the second file
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(write, "generate", interrupted)
    with pytest.raises(Interrupted, match="finished files are kept"):
        run(jobs)
    assert jobs.write
    folder = jobs.write.output.parent
    assert sorted(path.name for path in folder.iterdir()) == ["answers-00000.jsonl"]
    (folder / "answers-00001.jsonl.x.partial").write_text("half")
    calls = 99
    run(jobs)
    assert contents(folder) == contents(greedy.write.output.parent)


def test_a_damaged_file_is_refused_by_who_reads_it_and_written_anew(
    greedy: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert greedy.write
    before, folder = contents(greedy.write.output.parent), greedy.write.output.parent
    path = folder / "answers-00002.jsonl"
    path.write_text(path.read_text().replace("#### ", "#### 1"))
    with pytest.raises(UserError, match=r"answers-00002\.jsonl is not as it was written; run `kava write`"):
        tokenize.run(greedy.tokenize, Runtime.of(greedy.config))
    run(greedy)
    assert contents(folder) == before
    monkeypatch.setattr(write, "load_for_evaluation", None)
    run(greedy)  # without a teacher


def test_where_nothing_is_kept_the_gold_text_is_said_and_nothing_at_all_is_refused(
    tmp_path: Path,
) -> None:
    cut = {"kind": "teacher", "max_new_tokens": 3, "batch_size": 16}
    jobs = plan(tmp_path, cut)
    run(jobs)
    assert jobs.write
    facts = read_json(jobs.write.output)
    assert facts["questions"] == {"asked": QUESTIONS, "kept": 0, "gold": QUESTIONS, "dropped": 0}
    assert facts["answers"] == {"written": QUESTIONS, "kept": 0, "right": None, "cut": QUESTIONS}
    tokenize.run(jobs.tokenize, Runtime.of(jobs.config))
    manifest = read_json(jobs.tokenize.output)
    assert manifest["splits"]["train"]["examples"] == QUESTIONS
    assert "kept for 0 of 9 training questions, and the others have the gold answer" in manifest["warnings"][-1]
    with pytest.raises(UserError, match=r"none of the teacher's 9 answers is kept \(9 cut at the longest length\)"):
        run(plan(tmp_path, cut | {"otherwise": "drop"}))


def test_of_text_all_answers_that_end_are_kept_with_the_space_they_begin_with(greedy: Jobs, tmp_path: Path) -> None:
    assert greedy.write
    rows = load_rows(greedy.config.data).splits["train"][:5]
    lines = [{"prompt": f"Question: {row['question']}\nAnswer:", "response": "No."} for row in rows]
    write_lines(tmp_path / "text", [*lines, lines[0]], lines[:1])
    data = {"kind": "text", "path": str(tmp_path / "text"), "train": None, "validation": 1, "test": None}
    jobs = plan(tmp_path, GREEDY | {"keep": "all", "batch_size": 5}, **data)
    run(jobs)
    assert jobs.write
    found = lines_of(jobs.write.output.parent)
    as_questions = lines_of(greedy.write.output.parent)[:5]
    assert [line.answer for line in found] == [f" {line.text}" for line in as_questions]
    assert all(line.kept and line.right is None for line in found)


def test_prompts_without_room_for_an_answer_are_refused_before_the_teacher_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.answers\.max_new_tokens is 9,000, but .*set .* to \d+ at most"):
        run(plan(tmp_path, GREEDY | {"max_new_tokens": 9000}))


def test_a_run_on_gold_answers_has_nothing_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["write", "--configfile", str(CONFIG)]) == 1
    assert "data.answers is gold, so that the teacher writes nothing" in capsys.readouterr().err


def _in_another_process(folder: Path) -> None:
    own = write.Questions.write

    def slowly(*given: Any) -> list[WrittenAnswer]:
        time.sleep(0.5)  # or it may be done before it is killed
        return own(*given)

    write.Questions.write = slowly  # type: ignore[method-assign]
    os.chdir(folder)
    with (folder / "write.log").open("w", buffering=1, encoding="utf-8") as sys.stderr:
        run(plan(folder, GREEDY))


@pytest.mark.slow
def test_a_killed_writing_goes_on_to_the_same_bytes(greedy: Jobs, tmp_path: Path) -> None:
    assert greedy.write
    context = multiprocessing.get_context("spawn")
    folder = plan(tmp_path, GREEDY).write.output.parent  # type: ignore[union-attr]
    for shard in range(2):
        process = context.Process(target=_in_another_process, args=(tmp_path,))
        process.start()
        while not (folder / f"answers-0000{shard}.jsonl").is_file():
            assert process.is_alive(), (tmp_path / "write.log").read_text()
            time.sleep(0.01)
        process.kill()
        process.join()
        assert not (folder / "manifest.json").exists()
    run(plan(tmp_path, GREEDY))
    assert contents(folder) == contents(greedy.write.output.parent)


def test_numbers_of_an_answer_are_its_own() -> None:
    first = write.own_uniforms(0, 1, 2, 50)
    assert np.array_equal(first[:7], write.own_uniforms(0, 1, 2, 7))
    others = [write.own_uniforms(*which, 50) for which in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1))]
    assert all(not np.isin(first, other).any() for other in others)
    assert json.dumps(first[:2].tolist()) == json.dumps(write.own_uniforms(0, 1, 2, 2).tolist())
