"""Answers that end row by row are those of the harness's own class."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.models.huggingface import HFLM

from kava.bench.evaluate import generate
from kava.config.load import load_config
from kava.config.schema import Config
from kava.data import load_splits
from kava.data.task import TASK, write_task
from kava.data.template import Template
from kava.harness import RowwiseStop, harness_results, samples
from kava.models import load_for_evaluation, load_tokenizer

CONFIG = Path(__file__).resolve().parents[1] / "config.yaml"
QUESTIONS = 10


@pytest.fixture(scope="module")
def demo() -> Config:
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def student(demo: Config) -> tuple[Any, Any]:
    source = demo.student.model_dump()
    return load_for_evaluation(source, "cpu"), load_tokenizer(source)


def task(demo: Config, folder: Path, until: list[str] | None = None) -> Path:
    write_task(folder, load_splits(demo.data)["test"][:QUESTIONS], Template(demo.template))
    if until:
        path = folder / f"{TASK}.yaml"
        lines = path.read_text().split("generation_kwargs:\n")
        settings = {"until": until, "do_sample": False, "temperature": 0.0}
        rest = lines[1].split("repeats:", 1)[1]
        own = "".join(f"  {line}\n" for line in yaml.safe_dump(settings).splitlines())
        path.write_text(f"{lines[0]}generation_kwargs:\n{own}repeats:{rest}")
    return folder


@pytest.mark.parametrize("until", [None, ["<<", " ="], ["=", "zzz"]])
@pytest.mark.parametrize("batch_size", [4, 10])
def test_answers_are_those_of_the_harness_own_class(
    demo: Config, student: tuple[Any, Any], tmp_path: Path, until: list[str] | None, batch_size: int
) -> None:
    folder = task(demo, tmp_path, until)
    settings = {"batch_size": batch_size, "max_new_tokens": 30}
    own, ours = (samples(harness_results(*student, folder, settings, kind)) for kind in (HFLM, RowwiseStop))
    assert ours == own
    if until:
        assert not any(stop in line["answer"] for stop in until for line in ours)


def test_without_stop_strings_the_answers_are_those_of_plain_generate(
    demo: Config, student: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = student
    folder = task(demo, tmp_path)
    lines = samples(harness_results(model, tokenizer, folder, {"batch_size": 8, "max_new_tokens": 30}))
    prompts = [Template(demo.template).prompt(line["question"]) for line in lines]
    assert [line["answer"] for line in lines] == generate(model, tokenizer, prompts, 8, 30)


def test_generation_ends_when_every_row_has_met_a_stop_string_of_its_own(
    demo: Config, student: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = student
    folder = task(demo, tmp_path, ["<<", "\n"])
    steps: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **more: steps.append(1) or forward(*args, **more))
    taken = []
    for kind in (HFLM, RowwiseStop):
        steps.clear()
        harness_results(*student, folder, {"batch_size": QUESTIONS, "max_new_tokens": 60}, kind)
        taken.append(len(steps))
    assert taken[1] <= taken[0] < 60
