"""A chat template: the ids of the tokenizer's own conversation, and the same prompt in training and evaluation."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Template as Jinja
from test_tokens import ROW, rows, token_set
from transformers import AutoTokenizer
from zoo.data import GSM8K

import kava.demo
from kava.config import load_config
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY
from kava.config.schema import Chat
from kava.data.template import template_for
from kava.data.tokens import Segment, encode_example
from kava.errors import UserError
from kava.tasks.demo import generate

DEMO = Path(kava.demo.__file__).parent / "teacher"
PLAIN = "Question: {question}\nAnswer: {answer}"
# As Llama 3.2 does it: a start token in the text, today's date, the answer after two line breaks.
DATED = (
    "{{ bos_token }}{{ '<date>' + strftime_now('%d %b %Y') + '</date>' }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>\n\n' + message['content'] | trim + '<end>' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(qwen_tokenizer)


def segment(example: dict[str, list[int]], which: Segment) -> list[int]:
    return [i for i, s in zip(example["input_ids"], example["segments"], strict=True) if s == which]


@pytest.mark.parametrize("system", [None, "Think in {steps}."])
def test_ids_are_those_of_the_tokenizers_own_conversation(qwen: Any, gsm8k: Path, system: str | None) -> None:
    template = template_for(qwen, PLAIN, Chat(system=system))
    for row in rows(gsm8k, "test")[:50]:
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": f"Question: {row['question']}\nAnswer:"})
        asked = qwen.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        turns.append({"role": "assistant", "content": row["answer"]})
        whole = qwen.apply_chat_template(turns, return_dict=False)
        example = encode_example(GSM8K, qwen, template, row)
        assert example["input_ids"] == whole[:-1]  # the line break after the last turn is not learned
        assert segment(example, Segment.PROMPT) == asked == qwen.encode(template.prompt(row["question"]))


def test_segments_begin_with_the_first_word_of_the_answer_and_end_with_the_turn(qwen: Any) -> None:
    example = encode_example(GSM8K, qwen, template_for(qwen, PLAIN, Chat()), ROW)
    assert qwen.decode(segment(example, Segment.PROMPT)).endswith("<|im_start|>assistant\n")
    assert qwen.decode(segment(example, Segment.REASONING)) == "2+3=<<2+3=5>>5 apples.\n"
    assert qwen.decode(segment(example, Segment.ANSWER)) == "#### 5<|im_end|>"


def test_a_start_token_stands_once_and_the_date_is_not_todays(tinystories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tinystories, chat_template=DATED)
    template = template_for(tokenizer, PLAIN, Chat())
    assert "26 Jul 2024" in template.text
    ids = encode_example(GSM8K, tokenizer, template, ROW)["input_ids"]
    start = tokenizer("")["input_ids"]
    assert ids[: len(start)] == start
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_chat_that_the_tokenizer_cannot_hold_is_refused_with_the_mend(tinystories: Path) -> None:
    with pytest.raises(UserError, match=r"has no chat template.*set chat: null"):
        template_for(AutoTokenizer.from_pretrained(DEMO), PLAIN, Chat())
    refusing = AutoTokenizer.from_pretrained(tinystories, chat_template="{{ raise_exception('no system turn') }}")
    with pytest.raises(UserError, match=r"no system turn.*set chat\.system: null"):
        template_for(refusing, PLAIN, Chat(system="Think."))
    silent = AutoTokenizer.from_pretrained(tinystories, chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="does not show each turn once"):
        template_for(silent, PLAIN, Chat())


def test_the_task_asks_what_was_trained(tmp_path: Path) -> None:
    """The system's turn has braces, which Jinja would take for its own."""
    chat = Chat(system="Answer {{briefly}} {% now %}.")
    teacher = {"model": talking(tmp_path / "model")}
    tokens = token_set(tmp_path, ("teacher", teacher), ("chat", chat.model_dump()), ("max_length", 512))
    task = yaml.safe_load((tokens.task_folder / f"{GSM8K.harness.name}.yaml").read_text().replace("!function", ""))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    template = template_for(tokenizer, PLAIN, chat)
    assert "Answer {{briefly}} {% now %}.<end><user>\n\nQuestion: How many?" in template.prompt("How many?")
    asked = Jinja(task["doc_to_text"], keep_trailing_newline=True)
    for row in generate("test", 3, 0):
        assert asked.render(**row) == template.prompt(row["question"])
    expected = [encode_example(GSM8K, tokenizer, template, row)["input_ids"] for row in generate("train", 5, 0)]
    assert [ids.tolist() for ids in tokens.input_ids["train"][:5]] == expected


def test_a_chat_is_in_the_key_with_its_template_and_no_chat_is_in_none(tmp_path: Path) -> None:
    teacher = {"model": talking(tmp_path / "model")}
    keys = [
        Jobs(load_config(REPOSITORY / "config.yaml", {"teacher": teacher, "chat": chat})).tokenize.spec.key
        for chat in (None, {}, {"system": "Think."})
    ]
    assert "chat" not in keys[0].model_dump()
    assert "chat_template.jinja" not in keys[0].tokenizer["files"]
    assert [key.model_dump()["chat"] for key in keys[1:]] == [{"system": None}, {"system": "Think."}]
    assert "chat_template.jinja" in keys[1].tokenizer["files"]


def talking(folder: Path) -> str:
    """The demo's teacher with a chat template."""
    shutil.copytree(DEMO, folder)
    (folder / "chat_template.jinja").write_text(DATED)
    return str(folder)
