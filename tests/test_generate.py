"""A trained student carries its prompt: `kava generate` and the card's own snippet answer as its evaluation did."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from zoo.students import demo_student

from kava.cli import main
from kava.config.load import REPOSITORY
from kava.data.prompt_format import PromptFormat
from kava.training.export import export, speaks

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = "Question: {question}\nAnswer: {answer}"


def options(folder: Path, *settings: str) -> list[str]:
    steps = ["distill.steps=4", "distill.batch_size=8", "distill.accumulation=1", "distill.log_every=2"]
    data = ["data.train=64", "data.validation=4", "data.test=6", "evaluation.max_new_tokens=24", "seeds=[1]"]
    words = [*data, *steps, "arms={structured: null, flat: null}", f"cache_dir={folder}", *settings]
    return ["--configfile", str(REPOSITORY / "config.yaml"), *(word for s in words for word in ("--set", s))]


@pytest.fixture(scope="module", params=["plain", "chat"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A student that was trained for a few steps and evaluated, with the base model's tokenizer having a chat
    template."""
    folder = tmp_path_factory.mktemp(request.param)
    models = {}
    for role in ("teacher", "student"):
        models[role] = shutil.copytree(REPOSITORY / "kava" / "demo" / role, folder / role)
        (models[role] / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    given = options(
        folder, *(f"{role}.model={path}" for role, path in models.items()),
        *(["chat={system: 'Be brief. {}'}"] if request.param == "chat" else []), "max_length=200",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reference = ["evaluate", "--reference", "teacher"]
        for command in (["tokenize"], ["distill", "--arm", "sft"], reference, ["evaluate", "--arm", "sft"]):
            assert main([*command, *given]) == 0
    student = folder / "results/demo/sft/seed-1/student"
    lines = (student.parent / "evaluation/samples.jsonl").read_text(encoding="utf-8").splitlines()
    return SimpleNamespace(chat=request.param == "chat", student=student, samples=[json.loads(line) for line in lines])


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["generate", *words, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_the_command_answers_as_the_evaluation_did(run: Any, capsys, monkeypatch) -> None:
    assert len({sample["answer"] for sample in run.samples}) > 1
    first = run.samples[0]
    answer = {"question": first["question"], "answer": first["answer"]}
    assert asked(capsys, str(run.student), first["question"]) == [answer]
    type_in(monkeypatch, b"\n".join(sample["question"].encode() for sample in run.samples) + b"\n\n")
    assert [line["answer"] for line in asked(capsys, str(run.student))] == [sample["answer"] for sample in run.samples]
    assert main(["generate", str(run.student), first["question"]]) == 0
    assert capsys.readouterr().out == f"{first['answer'].strip()}\n"


def test_the_snippet_of_the_card_answers_as_the_evaluation_did(run: Any, capsys, monkeypatch) -> None:
    card = (run.student / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run.student)
    for sample in run.samples[:2]:
        asking, changed = re.subn(r"(?m)^question = .*$", lambda _, s=sample: f"question = {s['question']!r}", code)
        assert changed == 1
        capsys.readouterr()
        exec(asking, {})
        assert capsys.readouterr().out == f"{sample['answer']}\n"


def test_the_card_shows_the_prompt_as_it_was_trained(run: Any) -> None:
    card = (run.student / "README.md").read_text(encoding="utf-8")
    prompt = PromptFormat.of_student(run.student)
    example = prompt.fill("A box holds 6 eggs. How many eggs are in 3 boxes?")
    assert "\n".join(f"    {line}" for line in example.split("\n")) in card
    assert ("<|im_start|>system\nBe brief. {}" in example) == run.chat
    assert example.endswith("<|im_start|>assistant\n" if run.chat else "\nAnswer:")


def test_a_chat_template_is_kept_if_it_was_trained_and_gone_if_not(run: Any) -> None:
    assert (AutoTokenizer.from_pretrained(run.student).chat_template is not None) == run.chat


def test_the_prompt_survives_a_copy_and_being_published_anew(run: Any, tmp_path: Path, capsys) -> None:
    shutil.copytree(run.student, tmp_path / "copy")
    AutoModelForCausalLM.from_pretrained(run.student).save_pretrained(tmp_path / "anew")
    AutoTokenizer.from_pretrained(run.student).save_pretrained(tmp_path / "anew")
    sample = run.samples[1]
    for name in ("copy", "anew"):
        (line,) = asked(capsys, str(tmp_path / name), sample["question"])
        assert line["answer"] == sample["answer"]


def test_max_new_tokens_is_that_of_the_evaluation_unless_given(run: Any, capsys) -> None:
    assert GenerationConfig.from_pretrained(run.student).max_new_tokens == 24
    question = run.samples[0]["question"]
    tokenizer = AutoTokenizer.from_pretrained(run.student)
    (short,) = asked(capsys, str(run.student), question, "--max-new-tokens", "3")
    assert len(tokenizer(short["answer"])["input_ids"]) <= 3
    assert run.samples[0]["answer"].startswith(short["answer"])


@pytest.mark.parametrize(
    ("words", "typed", "said"),
    [
        (["no-such-folder", "How?"], b"", "is no folder; give that of a trained student"),
        (["EMPTY", "How?"], b"", "holds no model: it has no config.json"),
        (["RUN", "How?"], b"", "/run/student"),
        (["BASE", "How?"], b"", "does not say which prompt"),
        (["DAMAGED", "How?"], b"", "is damaged"),
        (["STUDENT", ""], b"", "the question is empty"),
        (["STUDENT", " \n"], b"", "the question is empty"),
        (["STUDENT"], b"", "standard input holds no question"),
        (["STUDENT"], b"\n \r\n", "standard input holds no question"),
        (["STUDENT"], b"How m\xe4ny?\n", "line 1 of standard input is not UTF-8"),
        (["STUDENT", "Why? \udce4"], b"", "the question is not UTF-8"),
        (["STUDENT", "apples " * 2000], b"", "1,024 positions; ask a shorter question"),
        (["STUDENT", "How?", "--max-new-tokens", "1024"], b"", "give --max-new-tokens 1"),
        (["STUDENT", "How?", "--max-new-tokens", "0"], b"", "leaves no answer"),
        (["STUDENT", "How?", "--max-new-tokens", "-3"], b"", "leaves no answer"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    tmp_path: Path, capsys, monkeypatch, words: list[str], typed: bytes, said: str
) -> None:
    prompt = {"prompt": "Question: {question}\nAnswer:", "stop": ["Question:"]}
    folders = {"EMPTY": tmp_path / "empty", "RUN": tmp_path / "run"}
    folders["EMPTY"].mkdir()
    demo_student(folders["RUN"] / "student", kava=prompt)
    folders["STUDENT"] = folders["RUN"] / "student"
    folders["BASE"] = demo_student(tmp_path / "base")
    folders["DAMAGED"] = demo_student(tmp_path / "damaged", kava={"prompt": 3})
    type_in(monkeypatch, typed)
    assert main(["generate", str(folders.get(words[0], words[0])), *words[1:]]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("kava generate: error: ")
    assert said in error


def test_an_export_in_place_of_a_chat_export_leaves_no_template_behind(tmp_path: Path) -> None:
    base = REPOSITORY / "kava" / "demo" / "student"
    prompt = PromptFormat("<|im_start|>user\nQuestion: {question}\nAnswer:<|im_end|>\n<|im_start|>assistant\n", [])
    for chat in ({"system": None}, None):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = CHATML
        asked = prompt if chat else PromptFormat("Question: {question}\nAnswer:", [])
        text = {"template": PLAIN} | ({"chat": chat} if chat else {})
        export(AutoModelForCausalLM.from_pretrained(base), tokenizer, asked, text, tmp_path)
        assert (tmp_path / "chat_template.jinja").is_file() == (chat is not None)
        assert (AutoTokenizer.from_pretrained(tmp_path).chat_template is not None) == (chat is not None)


def test_a_students_own_chat_template_that_makes_another_prompt_is_not_kept() -> None:
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "kava" / "demo" / "student")
    text = {"template": PLAIN, "chat": {"system": None}}
    prompt = PromptFormat("<|im_start|>user\nQuestion: {question}\nAnswer:<|im_end|>\n<|im_start|>assistant\n", [])
    tokenizer.chat_template = CHATML
    assert speaks(tokenizer, prompt, text)
    for other in (CHATML.replace("<|im_end|>", "</s>"), "{{ raise_exception('no') }}", None):
        tokenizer.chat_template = other
        assert not speaks(tokenizer, prompt, text)


def test_an_instruct_models_penalties_are_not_exported(tmp_path: Path) -> None:
    base = REPOSITORY / "kava" / "demo" / "student"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model.generation_config.update(repetition_penalty=1.3, do_sample=True, temperature=0.7)
    export(model, tokenizer, PromptFormat("{question}", []), {"template": PLAIN}, tmp_path)
    exported = json.loads((tmp_path / "generation_config.json").read_text())
    assert not exported.keys() & {"repetition_penalty", "do_sample", "temperature"}
    assert exported["eos_token_id"] == model.config.eos_token_id
