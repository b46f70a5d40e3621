"""Answers that end row by row are those of the harness's own class."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from zoo.data import GSM8K

from kava.bench.evaluate import generate
from kava.config.load import load_config
from kava.config.schema import Config, Evaluation
from kava.data.rows import load_rows
from kava.data.task import write_task
from kava.data.template import Template
from kava.evaluation.harness import AnswerStop, harness_results, samples, score
from kava.models.load import load_for_evaluation, load_tokenizer

CONFIG = Path(__file__).resolve().parents[1] / "config.yaml"
QUESTIONS = 10


@pytest.fixture(scope="module")
def demo() -> Config:
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def student(demo: Config) -> tuple[Any, Any]:
    source = demo.student
    return load_for_evaluation(source, torch.device("cpu")), load_tokenizer(source)


def task(demo: Config, folder: Path, until: list[str] | None = None, questions: int = QUESTIONS) -> Path:
    write_task(folder, load_rows(demo.data).splits["test"][:questions], Template(demo.template), GSM8K.harness)
    if until:
        path = folder / f"{GSM8K.harness.name}.yaml"
        lines = path.read_text().split("generation_kwargs:\n")
        settings = {"until": until, "do_sample": False, "temperature": 0.0}
        rest = lines[1].split("repeats:", 1)[1]
        own = "".join(f"  {line}\n" for line in yaml.safe_dump(settings).splitlines())
        path.write_text(f"{lines[0]}generation_kwargs:\n{own}repeats:{rest}")
    return folder


def by_the_harness_own(
    model: Any, tokenizer: Any, folder: Path, batch_size: int, max_new_tokens: int
) -> dict[str, Any]:
    """What the harness's own class makes of the task."""
    return score(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size), folder, max_new_tokens)


@pytest.mark.parametrize("until", [None, ["<<", " ="], ["=", "zzz"]])
@pytest.mark.parametrize("batch_size", [4, 10])
def test_answers_are_those_of_the_harness_own_class(
    demo: Config, student: tuple[Any, Any], tmp_path: Path, until: list[str] | None, batch_size: int
) -> None:
    folder = task(demo, tmp_path, until)
    settings = Evaluation(batch_size=batch_size, max_new_tokens=30)
    ours = samples(harness_results(*student, folder, settings), GSM8K.harness)
    theirs = by_the_harness_own(*student, folder, settings.batch_size, settings.max_new_tokens)
    assert ours == samples(theirs, GSM8K.harness)
    if until:
        assert not any(stop in line["answer"] for stop in until for line in ours)


def test_without_stop_strings_the_answers_are_those_of_plain_generate(
    demo: Config, student: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = student
    folder = task(demo, tmp_path)
    lines = samples(
        harness_results(model, tokenizer, folder, Evaluation(batch_size=8, max_new_tokens=30)), GSM8K.harness
    )
    prompts = [Template(demo.template).prompt(line["question"]) for line in lines]
    assert [line["answer"] for line in lines] == generate(model, tokenizer, prompts, 8, 30)


class Scripted:
    """A model's `generate` whose greedy continuations are given, row by row."""

    def __init__(self, rows: list[list[int]], end: int) -> None:
        self.rows, self.end, self.steps = rows, end, 0

    def __call__(self, input_ids: torch.Tensor, stopping_criteria: Any, max_length: int, **_: Any) -> Any:
        rows, done = self.rows[: len(input_ids)], torch.zeros(len(input_ids), dtype=torch.bool)
        del self.rows[: len(input_ids)]
        step = 0
        while not done.all() and input_ids.shape[1] < max_length:
            wanted = torch.tensor([row[step] if step < len(row) else self.end for row in rows])
            input_ids = torch.cat([input_ids, torch.where(done, self.end, wanted)[:, None]], dim=1)
            done |= (input_ids[:, -1] == self.end) | torch.as_tensor(stopping_criteria(input_ids, None))
            step += 1
        self.steps += step
        return input_ids


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_stop_string_that_is_a_special_token_ends_its_row_as_where_the_harness_asks_one_question_at_a_time(
    demo: Config, student: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    model, _ = student
    tokenizer = load_tokenizer(demo.student)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.eos_token_id
    stopped, short = (
        tokenizer(text)["input_ids"] for text in (" 5\n#### 5<|im_end|> 9 9 9 9", " 1 + 1 = 2 and 2\n#### 2")
    )
    write_task(tmp_path, load_rows(demo.data).splits["test"][:2], Template(demo.template), GSM8K.harness)
    monkeypatch.setattr(model, "generate", Scripted([stopped, short], end))
    one_at_a_time = samples(by_the_harness_own(model, tokenizer, tmp_path, 1, 20), GSM8K.harness)
    monkeypatch.setattr(model, "generate", Scripted([stopped, short], end))
    assert samples(
        harness_results(model, tokenizer, tmp_path, Evaluation(batch_size=batch_size, max_new_tokens=20)), GSM8K.harness
    ) == (one_at_a_time)
    assert sorted(line["answer"][-6:] for line in one_at_a_time) == ["#### 2", "#### 5"]


def test_generation_ends_when_every_row_has_met_a_stop_string_of_its_own(
    demo: Config, student: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = student
    rows = [tokenizer(text)["input_ids"] for text in (" 1 << 1 1 1 1 1 1 1 1", " 2 = 2 2 2 2 2 2 2 2")]
    steps = {}
    for name, answer in (("ours", harness_results), ("its own", lambda *given: by_the_harness_own(*given[:3], 2, 20))):
        scripted = Scripted(list(rows), tokenizer.eos_token_id)
        monkeypatch.setattr(model, "generate", scripted)
        folder = task(demo, tmp_path, ["<<", "="], 2)
        found = samples(answer(model, tokenizer, folder, Evaluation(batch_size=2, max_new_tokens=20)), GSM8K.harness)
        assert sorted(line["answer"].strip() for line in found) == ["1", "2"]
        steps[name] = scripted.steps
    assert steps["ours"] < steps["its own"]


def test_a_stop_string_that_the_prompt_begins_does_not_end_the_answer(student: tuple[Any, Any]) -> None:
    _, tokenizer = student
    ids = torch.tensor([tokenizer("Tom has 5 apples")["input_ids"]])
    stop = tokenizer.decode(ids[0, -2:])
    scores = torch.zeros(1, 1)
    assert AnswerStop(tokenizer, [stop], ids.shape[1] - 2)(ids, scores).tolist() == [True]
    assert AnswerStop(tokenizer, [stop], ids.shape[1] - 1)(ids, scores).tolist() == [False]
