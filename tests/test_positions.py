"""No prompt is cut: what does not fit a model's positions is refused, before a run, at each stage, in the harness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from lm_eval.api.instance import Instance
from transformers import AutoConfig, GPT2Config
from zoo.data import GSM8K
from zoo.students import demo_student

from kava.bench.evaluate import main as bench_evaluate
from kava.cli import main
from kava.config import Job, Jobs, Runtime, load_config
from kava.config.load import REPOSITORY
from kava.config.models import ModelSettings
from kava.config.schema import Evaluation
from kava.config.specs import EvaluateSpec, EvaluationKey
from kava.data.fit import Longest, lack, longest_prompt
from kava.data.fit import positions as positions_reached
from kava.data.positions import Prompts, check_positions, look
from kava.data.task import read_prompt, read_rows, write_task
from kava.data.template import Template
from kava.doctor.sources import prompts
from kava.errors import UserError
from kava.evaluation import evaluate
from kava.evaluation.harness import RowwiseStop
from kava.models.load import load_for_evaluation, load_tokenizer

CONFIG = REPOSITORY / "config.yaml"
POSITIONS = 1024  # of both demo models
SMALL = ("data.train=8", "data.validation=2", "data.test=6", "evaluation.batch_size=2")


def options(folder: Path, *settings: str) -> list[str]:
    given = (*SMALL, f"cache_dir={folder}", *settings)
    return ["--configfile", str(CONFIG), *(word for setting in given for word in ("--set", setting))]


def planned(folder: Path, **changes: Any) -> Jobs:
    data = {"train": 8, "validation": 2, "test": 6}
    return Jobs(load_config(CONFIG, {"cache_dir": str(folder), "data": data} | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token set of six test questions."""
    folder = tmp_path_factory.mktemp("cache")
    assert main(["tokenize", *options(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def longest(cache: Path) -> Longest:
    asked, folder = read_prompt(task_of(cache)), task_of(cache)
    tokenizer = load_tokenizer(ModelSettings(model="kava:student"))
    prompts = [asked.fill(row["question"]) for row in read_rows(folder)]
    found = longest_prompt(tokenizer, prompts)
    assert found.tokens == max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    return found


def task_of(cache: Path) -> Path:
    return planned(cache).tokenize.output.parent / "task"


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({"model_type": "llama", "max_position_embeddings": 77}, 77),
        ({"model_type": "gpt2", "n_positions": 77}, 77),
        # Its text part decides, whatever stands beside it.
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 77}}, 77),
        # No positions are embedded, and a tokenizer's model_max_length is no limit.
        ({"model_type": "bloom"}, None),
        ({"model_type": "mamba"}, None),
    ],
)
def test_positions_are_those_of_the_configuration(settings: dict[str, Any], positions: int | None) -> None:
    assert positions_reached(AutoConfig.for_model(**settings)) == positions


@pytest.mark.parametrize("value", [0, -1])
def test_a_number_that_is_no_length_is_no_limit(value: int) -> None:
    assert positions_reached(GPT2Config(n_positions=value)) is None


def test_the_sentence_has_the_longest_prompt_the_limit_and_the_largest_answer_that_fits() -> None:
    limits = {"teacher": 100, "student": 90, "endless": None}
    assert lack(limits, Longest(3, 50), 40) is None
    assert lack({"endless": None}, Longest(3, 50), 10**9) is None
    sentence = lack(limits, Longest(3, 50), 41)
    assert sentence is not None
    for part in ("test question 3", "50 tokens", "max_new_tokens is 41", "student has 90 positions", "to 40 at most"):
        assert part in sentence
    for tokens in (90, 5000):
        alone = lack(limits, Longest(0, tokens), 1)
        assert alone is not None
        assert "no max_new_tokens fits: drop test questions whose prompt is longer than 89 tokens" in alone


@pytest.mark.parametrize("command", [["tokenize"], ["evaluate", "--reference", "teacher"]])
@pytest.mark.parametrize("beyond", [1, 40, 10_000])
def test_an_answer_beyond_the_positions_is_refused_before_anything_is_loaded(
    cache: Path, longest: Longest, capsys: pytest.CaptureFixture[str], command: list[str], beyond: int
) -> None:
    fits = POSITIONS - longest.tokens
    assert main([*command, *options(cache, f"evaluation.max_new_tokens={fits + beyond}")]) == 1
    said = capsys.readouterr().err
    assert f"has {longest.tokens} tokens" in said
    assert f"set evaluation.max_new_tokens to {fits} at most" in said
    assert "Traceback" not in said


def test_the_largest_answer_that_fits_is_let_through_everywhere(cache: Path, longest: Longest) -> None:
    plan = planned(cache, evaluation={"max_new_tokens": POSITIONS - longest.tokens})
    assert look(plan.config) == Prompts()
    assert prompts(plan.config).status == "ok"
    for job in jobs(plan):
        check_positions(job, Runtime.of(plan.config))


def jobs(plan: Jobs) -> list[Job]:
    return [
        plan.extract, plan.pretrain("flat", 42), plan.distill("sft", 42),
        *(plan.reference(role) for role in ("teacher", "student_base")),
    ]  # fmt: skip


def test_every_stage_looks_ahead_since_a_token_set_may_be_older_than_the_setting(cache: Path, longest: Longest) -> None:
    plan = planned(cache, evaluation={"max_new_tokens": POSITIONS - longest.tokens + 1})
    assert f"to {POSITIONS - longest.tokens} at most" in str(look(plan.config).lack)
    check = prompts(plan.config)
    assert (check.status, check.fix) == (
        "fail",
        f"set evaluation.max_new_tokens to {POSITIONS - longest.tokens} at most",
    )
    for job in jobs(plan):
        with pytest.raises(UserError, match="a prompt is never cut"):
            check_positions(job, Runtime.of(plan.config))


class Loaded(Exception):
    """The stage came as far as loading its model."""


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise Loaded

    monkeypatch.setattr(evaluate, "load_for_evaluation", load)
    monkeypatch.setattr(evaluate, "read_likeliest", lambda *_: {})
    monkeypatch.setattr(evaluate, "require_room", lambda *_: None)  # gold answers are longer than these
    monkeypatch.setattr(evaluate, "write_card", lambda *_: None)


@pytest.mark.usefixtures("_no_model")
def test_an_exported_student_is_measured_by_its_own_configuration(
    cache: Path, longest: Longest, tmp_path: Path
) -> None:
    student = demo_student(tmp_path / "student", max_position_embeddings=longest.tokens + 9)
    (student / "manifest.json").write_text("{}")
    inputs = {
        "tokens": planned(cache).tokenize.output,
        "student": student / "manifest.json",
        "teacher": student / "manifest.json",
    }
    for new, outcome in ((10, pytest.raises(UserError, match="to 9 at most")), (9, pytest.raises(Loaded))):
        spec = EvaluateSpec(key=EvaluationKey(scores=1, evaluation=Evaluation(max_new_tokens=new)))
        with outcome:
            job = Job("evaluate", spec, tmp_path / "out" / "manifest.json", inputs)
            evaluate.run(job, Runtime.of(planned(cache).config))


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(("role", "model"), [("teacher", "teacher"), ("student_base", "student")])
def test_a_reference_is_measured_by_its_own_positions_and_not_the_others(
    role: str, model: str, cache: Path, longest: Longest, tmp_path: Path
) -> None:
    small = demo_student(tmp_path / "small", max_position_embeddings=longest.tokens + 9)
    plan = planned(cache, evaluation={"max_new_tokens": 10})
    job = replace(plan.reference(role), output=tmp_path / "out" / "manifest.json")
    runtime = Runtime.of(plan.config)
    other = "student" if model == "teacher" else "teacher"
    ours, theirs = ({name: getattr(runtime, name).model_copy(update={"model": str(small)})} for name in (model, other))
    with pytest.raises(Loaded):
        evaluate.run(job, runtime.model_copy(update=theirs))
    with pytest.raises(UserError, match="to 9 at most"):
        evaluate.run(job, runtime.model_copy(update=ours))


def test_plan_says_it_before_anything_runs_and_has_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--configfile", str(CONFIG), "--set", "arms={structured: null, flat: null}"]
    for new, status in ((1020, 1), (100, 0)):
        assert main(["plan", *options, "--set", f"evaluation.max_new_tokens={new}"]) == status
        said = " ".join(capsys.readouterr().out.split())
        assert ("a prompt is never cut; set evaluation.max_new_tokens to" in said) == (status == 1)
        assert ("positions all test questions fit" in said) == (status == 0)


def test_what_is_not_on_this_machine_is_not_compared_and_that_is_said() -> None:
    found = look(load_config(None, {"preset": "qwen2.5-8gb"}))
    assert found.lack is None
    assert str(found).startswith("not known: Qwen/Qwen2.5-1.5B-Instruct at")


@pytest.mark.parametrize(("positions", "answer", "status"), [(40, 30, 1), (2048, 30, 0)])
def test_a_long_question_is_refused_with_the_shorter_of_teacher_and_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], positions: int, answer: int, status: int
) -> None:
    student = demo_student(tmp_path / "student", max_position_embeddings=positions)
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"question": f"{'Ann has 3 apples. ' * times}How many?", "answer": "3\n#### 3"} for times in (1, 30, 2)]
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows[:: 1 if split == "test" else 2])
        )
    settings = ["data={kind: gsm8k, path: %s, validation: 1}" % data, f"student.model={student}"]  # noqa: UP031
    given = [
        word
        for s in (*settings, f"cache_dir={tmp_path}", f"evaluation.max_new_tokens={answer}")
        for word in ("--set", s)
    ]
    assert main(["tokenize", "--configfile", str(CONFIG), *given]) == status
    said = capsys.readouterr().err
    assert ("test question 1" in said) == (status == 1)
    assert ("no max_new_tokens fits: drop test questions whose prompt is longer than 39 tokens" in said) == (
        status == 1
    )


def test_the_harness_itself_cannot_cut_a_prompt() -> None:
    source = ModelSettings(model="kava:student")
    model, tokenizer = load_for_evaluation(source, torch.device("cpu")), load_tokenizer(source)
    model.config.max_position_embeddings = 60
    lm = RowwiseStop(pretrained=model, tokenizer=tokenizer, batch_size=2)
    contexts: list[Any] = []
    generate = model.generate
    model.generate = lambda **given: contexts.append(given["input_ids"]) or generate(**given)

    def ask(words: int, new: int) -> list[str]:
        prompts = ["Question: " + "apples " * words + "\nAnswer:", "Question: apples\nAnswer:"]
        made = [
            Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": new}), n) for n, p in enumerate(prompts)
        ]
        return lm.generate_until(made, disable_tqdm=True)

    longest = len(tokenizer("Question: " + "apples " * 30 + "\nAnswer:")["input_ids"])
    ask(30, 60 - longest)
    assert [ids.shape[1] for ids in contexts] == [longest]
    for new in (60 - longest + 1, 60, 10_000):
        with pytest.raises(UserError, match=f"to {60 - longest} at most"):
            ask(30, new)
    with pytest.raises(UserError, match="no max_new_tokens fits"):
        ask(80, 1)
    assert len(contexts) == 1


def test_a_model_without_positions_reads_a_prompt_longer_than_its_tokenizer_speaks_of() -> None:
    tokenizer = load_tokenizer(ModelSettings(model="kava:student"))
    tokenizer.model_max_length = 8
    model = tiny_model("bloom", vocab_size=len(tokenizer), max_position_embeddings=None)
    lm = RowwiseStop(pretrained=model, tokenizer=tokenizer, batch_size=1)
    assert positions_reached(model.config) is None
    seen: list[int] = []
    model.generate = lambda input_ids, **_: seen.append(input_ids.shape[1]) or input_ids
    prompt = "Question: " + "apples " * 20 + "\nAnswer:"
    lm.generate_until([Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 5000}), 0)], True)
    assert seen == [len(tokenizer(prompt)["input_ids"])]


def test_the_benchmark_of_scoring_refuses_too(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--configfile",
        str(CONFIG),
        "--questions",
        "2",
        "--rounds",
        "1",
        "--set",
        "evaluation.max_new_tokens=1020",
    ]
    assert bench_evaluate(given) == 1
    assert "a prompt is never cut; set evaluation.max_new_tokens to" in capsys.readouterr().err


@pytest.mark.parametrize("template", ["Question: {question}\nAnswer: {answer}", "{{x}} {question} {{{{y}}}}: {answer}"])
def test_the_prompt_of_a_task_is_read_back_as_it_was_written(tmp_path: Path, template: str) -> None:
    rows = [{"question": "How {many}?", "answer": "#### 1"}, {"question": "Zwölf?\n", "answer": "#### 2"}]
    write_task(tmp_path, rows, Template(template), GSM8K.harness)
    asked = read_prompt(tmp_path)
    assert read_rows(tmp_path) == rows
    for row in rows:
        assert asked.fill(row["question"]) == Template(template).prompt(row["question"])
    assert "Question:" in asked.stop
