"""Text of one's own: rows of prompt and response or of messages, what a tokenizer makes of them, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo.data import save_to_disk, write_lines, write_parquet
from zoo.text import CHAT, conversation, pair, text_data, token_set

from kava.config.data import Gsm8kData, TextData
from kava.config.load import REPOSITORY
from kava.config.models import ModelSettings
from kava.config.schema import Chat
from kava.data.rows import load_rows
from kava.data.task import read_prompt, read_rows
from kava.data.template import Wording
from kava.data.tokens import Segment, encode_example
from kava.errors import UserError
from kava.models.load import load_tokenizer
from kava.tasks import task_of

DEMO = ModelSettings(model="kava:teacher")
GOOD = json.dumps({"prompt": "Say five.", "response": "Five."})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def chat_tokenizer() -> Any:
    tokenizer = load_tokenizer(DEMO)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    train, test = [pair(n) for n in range(5)], [pair(n, "test") for n in range(2)]
    expected = [{"question": row["prompt"], "answer": row["response"]} for row in train]
    for write in (write_lines, write_parquet, save_to_disk):
        loaded = load_rows(text_data(write(tmp_path / write.__name__, train, test), validation=2))
        assert loaded.splits["train"] + loaded.splits["validation"] == expected
        assert len(loaded.splits["test"]) == 2
        assert not loaded.conversations


def test_messages_are_turns_and_an_answer_in_every_format(tmp_path: Path) -> None:
    train, test = [conversation(n) for n in range(5)], [conversation(n) for n in range(9, 11)]
    for write in (write_lines, write_parquet, save_to_disk):
        loaded = load_rows(text_data(write(tmp_path / write.__name__, train, test)))
        assert loaded.conversations
        first = loaded.splits["train"][0]
        assert json.loads(first["question"]) == train[0]["messages"][:-1]
        assert first["answer"] == train[0]["messages"][-1]["content"]


def message(role: Any, content: Any = "Hello.") -> dict[str, Any]:
    return {"role": role, "content": content}


USER, ANSWER = message("user"), message("assistant")
LINES: dict[str, tuple[Any, str]] = {
    "no response": ({"prompt": "a?"}, "response is missing; there is prompt"),
    "no prompt": ({"response": "a"}, "prompt is missing; there is response"),
    "other fields": ({"question": "a?", "answer": "b"}, "prompt is missing; there is question, answer"),
    "nothing": ({}, "prompt is missing; there is nothing"),
    "null": ({"prompt": "a?", "response": None}, "response is null"),
    "a number": ({"prompt": 5, "response": "a"}, "prompt is float"),
    "a list": ({"prompt": ["a?"], "response": "a"}, "prompt is list"),
    "no object": (["a?", "b"], "it is a list"),
    "an empty prompt": ({"prompt": " \n", "response": "a"}, "prompt is empty"),
    "an empty response": ({"prompt": "a?", "response": ""}, "response is empty"),
    "NUL": ({"prompt": "a\0?", "response": "b"}, "prompt holds a NUL character"),
    "half a surrogate pair": (r'{"prompt": "a", "response": "\ud800"}', "response holds half of a surrogate pair"),
    "a key twice": ('{"prompt": "a", "response": "b", "response": "c"}', "response is there twice"),
    "both forms": ({"prompt": "a?", "response": "b", "messages": [USER, ANSWER]}, "messages are there both"),
    "a prompt and messages": ({"prompt": "a?", "messages": [USER, ANSWER]}, "prompt and messages are there both"),
    "messages are text": ({"messages": "Hello."}, "messages must be a list of two at least"),
    "an answer to nothing": ({"messages": [ANSWER]}, "messages must be a list of two at least"),
    "no assistant": ({"messages": [USER, USER]}, "the last message is of the user, and has to be the assistant's"),
    "the user last": ({"messages": [USER, ANSWER, USER]}, "the last message is of the user"),
    "an unknown role": ({"messages": [message("human"), ANSWER]}, "message 0 has the role 'human'; allowed: system,"),
    "a role that is a list": ({"messages": [message(["user"]), ANSWER]}, r"message 0 has the role \['user'\]"),
    "no content": ({"messages": [{"role": "user"}, ANSWER]}, "message 0 is no object with role and content"),
    "a message that is text": ({"messages": ["Hello.", ANSWER]}, "message 0 is no object with role and content"),
    "content of parts": ({"messages": [message("user", [{"type": "text"}]), ANSWER]}, "content of message 0 is list"),
    "an empty answer": ({"messages": [USER, message("assistant", " ")]}, "the content of message 1 is empty"),
    "NUL in a message": ({"messages": [message("user", "\0"), ANSWER]}, "content of message 0 holds a NUL"),
}


@pytest.mark.parametrize(("line", "wrong"), LINES.values(), ids=LINES)
def test_a_line_that_is_no_row_is_named_with_what_is_wrong(line: Any, wrong: str, tmp_path: Path) -> None:
    where = rf"train\.jsonl, line 2: expected a JSON object with prompt and response.*{wrong}.*correct or drop it"
    with pytest.raises(UserError, match=where) as refused:
        load_rows(text_data(write_lines(tmp_path, [GOOD, line, GOOD], [GOOD])))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "a?", "response": None}, "response is null, in row 1"),
        ({"prompt": "", "response": "b"}, "prompt is empty, in row 1"),
        ({"prompt": "a\0?", "response": "b"}, "prompt holds a NUL character, in row 1"),
    ],
)
def test_rows_of_other_formats_are_held_to_the_same(row: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    for write in (write_parquet, save_to_disk):
        folder = write(tmp_path / write.__name__, [pair(0), row, pair(1)], [pair(2)])
        with pytest.raises(UserError, match=rf"train of .* cannot be read from .* \(.*{wrong}\)"):
            load_rows(text_data(folder))


def test_rows_of_two_forms_are_refused(tmp_path: Path) -> None:
    folder = write_lines(tmp_path, [pair(0), pair(1), conversation(2), pair(3)], [pair(4)])
    wrong = (
        r"rows of two forms, prompt and response \(train row 0\) and messages \(train row 2\); write all of them in one"
    )
    with pytest.raises(UserError, match=wrong):
        load_rows(text_data(folder))


def test_columns_of_a_table_that_holds_both_forms_may_be_null(tmp_path: Path) -> None:
    rows = [conversation(n) | {"prompt": None, "response": None} for n in range(3)]
    assert load_rows(text_data(write_lines(tmp_path, rows, rows))).conversations


# What the tokenizer makes of rows.


def parts(tokenizer: Any, wording: Wording, row: dict[str, str]) -> dict[Segment, str]:
    example = encode_example(task_of("text"), tokenizer, wording.template, row)
    return {
        segment: tokenizer.decode([i for i, s in zip(*example.values(), strict=True) if s == segment])
        for segment in Segment
    }


def test_the_whole_response_with_its_end_token_is_the_answer(tokenizer: Any) -> None:
    wording = Wording(tokenizer, TextData.template, None)
    text = parts(tokenizer, wording, {"question": "Tom has 5 apples. ", "answer": "Tom #### 5 <<1+1=2>>"})
    assert text[Segment.PROMPT] == "Tom has 5 apples."
    assert text[Segment.REASONING] == ""
    assert text[Segment.ANSWER] == " Tom #### 5 <<1+1=2>>" + tokenizer.eos_token


def test_a_conversation_is_worded_by_the_chat_template_and_its_last_message_is_the_answer(chat_tokenizer: Any) -> None:
    wording = Wording(chat_tokenizer, TextData.template, None, conversations=True)
    turns = [message("user", "Tom has 5."), message("assistant", "Yes."), message("user", "How many?")]
    (row,) = wording.rows([{"question": json.dumps(turns), "answer": "Tom has 5."}], "train")
    assert row["question"] == "[user] Tom has 5.\n[assistant] Yes.\n[user] How many?\n[assistant] "
    text = parts(chat_tokenizer, wording, row)
    assert text[Segment.PROMPT] + text[Segment.ANSWER] == row["question"] + "Tom has 5." + chat_tokenizer.eos_token
    assert text[Segment.ANSWER].strip() == "Tom has 5." + chat_tokenizer.eos_token
    # What `kava generate` asks: one turn of the user.
    assert wording.asked.prompt("How many?") == "[user] How many?\n[assistant]"


def test_the_system_turn_of_the_configuration_is_that_of_conversations_without_one(chat_tokenizer: Any) -> None:
    wording = Wording(chat_tokenizer, TextData.template, Chat(system="Be brief."), conversations=True)
    own = [message("system", "Be kind."), message("user", "How many?")]
    rows = [{"question": json.dumps(turns), "answer": "Five."} for turns in (own, own[1:])]
    asked = [row["question"] for row in wording.rows(rows, "train")]
    assert [text.split("\n")[0] for text in asked] == ["[system] Be kind.", "[system] Be brief."]


def test_conversations_that_a_tokenizer_cannot_word_are_refused(tokenizer: Any, chat_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"has no chat template, and the rows are messages; choose an instruct model"):
        Wording(tokenizer, TextData.template, None, conversations=True)
    with pytest.raises(UserError, match=r"the chat template words, and template is 'Q: .*'; remove template"):
        Wording(chat_tokenizer, "Q: {question} {answer}", None, conversations=True)
    wording = Wording(chat_tokenizer, TextData.template, None, conversations=True)
    twice = [message("user"), message("user")]
    with pytest.raises(UserError, match=r"refuses the turns of train row 1 \(roles must alternate\); correct or drop"):
        wording.rows([{"question": json.dumps(t), "answer": "a"} for t in ([USER], twice)], "train")


def test_a_token_set_holds_the_ids_of_its_test_rows_and_drops_long_ones(tmp_path: Path) -> None:
    long = pair(7, "test") | {"response": "Tom has 5 apples. " * 20}
    test = [pair(0, "test"), long, pair(1, "test")]
    write_lines(tmp_path / "data", [pair(n) for n in range(8)], test)
    tokens = token_set(tmp_path, max_length=60)
    assert set(tokens.input_ids) == {"train", "validation"}
    assert tokens.manifest["splits"]["test"]["dropped"] == 1
    assert [row["answer"] for row in read_rows(tokens.task_folder)] == [test[0]["response"], test[2]["response"]]
    assert tokens.test_ids is not None
    assert tokens.test_segments is not None
    tokenizer = load_tokenizer(DEMO)
    for row, ids, segments in zip((test[0], test[2]), tokens.test_ids, tokens.test_segments, strict=True):
        assert tokenizer.decode(ids) == row["prompt"] + row["response"] + tokenizer.eos_token
        assert tokenizer.decode(ids[segments == Segment.ANSWER]).strip() == row["response"] + tokenizer.eos_token
        assert np.unique(segments).tolist() == [Segment.PROMPT, Segment.ANSWER]
    assert tokens.reach.longest == max(
        map(len, [*tokens.input_ids["train"], *tokens.input_ids["validation"], *tokens.test_ids])
    )
    asked = read_prompt(tokens.task_folder)
    assert (asked.prompt, asked.stop) == ("{question}", [])
    assert asked.fill("How many? ") == "How many?"


def test_a_prompt_that_has_no_token_of_its_own_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    assert len(tokenizer(" apples")["input_ids"]) == 1
    write_lines(tmp_path / "data", [pair(0), {"prompt": " app", "response": "les"}, pair(1)], [pair(2)])
    with pytest.raises(UserError, match=r"train row 1: the tokenizer merges all of the prompt .* put a space or"):
        token_set(tmp_path)


def test_the_rows_of_the_documentation_are_rows(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")
    shown = [json.loads(text) for text in re.findall(r"```json\n(.*?)\n```", page)]
    for number, (row, kind) in enumerate(zip(shown, ("text", "text", "gsm8k"), strict=True)):
        folder = write_lines(tmp_path / str(number), [row] * 3, [row])
        data = {"text": TextData, "gsm8k": Gsm8kData}[kind](path=str(folder), validation=1)
        assert len(load_rows(data).splits["train"]) == 2
