"""Tokenizers and chat templates that cannot be used: one sentence each, from tokenising and from the doctor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_doctor import by_name, config
from test_tokens import token_set
from zoo import tokenizers as zoo

import kava.demo
from kava.config.models import ModelSettings
from kava.config.schema import Chat
from kava.data.template import template_for
from kava.data.tokens import require_same_tokenizer
from kava.doctor.sources import _pair
from kava.errors import UserError
from kava.models.load import load_tokenizer

DEMO = Path(kava.demo.__file__).parent / "teacher"
PLAIN = "Question: {question}\nAnswer: {answer}"
SAID = {
    "only_sentencepiece_model": "the package sentencepiece, which reads it, is missing; `pip install sentencepiece`",
    "unknown_class": "need the class that tokenizer_config.json names, and transformers has none",
    "slow": "does not say which characters a token stands for",
    "truncated": "tokenizer.json is damaged or was not copied to its end",
    "pointer": "tokenizer.json is damaged or was not copied to its end",
    "another_file": "tokenizer.json is JSON, and not what a tokenizer keeps there",
    "without_model": "tokenizer.json is JSON, and not what a tokenizer keeps there",
    "unknown_model": "check the files in that directory",
    "damaged_settings": "tokenizer_config.json is damaged or was not copied to its end",
    "settings_of_another_kind": "tokenizer_config.json is JSON, and not what a tokenizer keeps there",
    "end_that_is_no_text": "eos_token has to be either str",
    "without_end": "has no end token; set eos_token in its files",
}


def pair(folder: Path) -> dict[str, Any]:
    return {role: {"model": str(folder)} for role in ("teacher", "student")}


@pytest.mark.parametrize("name", zoo.UNREADABLE)
def test_a_tokenizer_that_cannot_be_used_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kava.models.on_disk.find_spec", lambda _: None)  # as where sentencepiece is not installed
    folder = zoo.UNREADABLE[name](tmp_path / "model")
    with pytest.raises(UserError) as tokenising:
        token_set(tmp_path, *pair(folder).items())
    assert SAID[name] in str(tokenising.value)
    assert "\n" not in str(tokenising.value)
    assert "; " in str(tokenising.value)
    (found,) = _pair(config(**pair(folder)))
    assert found.status == "fail"
    assert f"{found.message}; {found.fix}" == str(tokenising.value)


def test_every_unreadable_tokenizer_has_its_sentence() -> None:
    assert SAID.keys() == zoo.UNREADABLE.keys()


def test_words_that_a_tokenizer_has_no_token_for_are_one_sentence(tmp_path: Path) -> None:
    folder = zoo.word_level_without_unknown(tmp_path / "model")
    with pytest.raises(UserError, match=r"cannot write 'Question: .*Missing \[UNK\].*or a token for unknown ones"):
        token_set(tmp_path, *pair(folder).items())
    (found,) = _pair(config(**pair(folder)))
    assert found.status == "fail"
    assert "cannot write 'Question:" in found.message


def test_a_class_that_nobody_has_is_no_matter_beside_a_whole_tokenizer(tmp_path: Path) -> None:
    folder = zoo.byte_level(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps(settings | {"tokenizer_class": "NoSuchTokenizer"})
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    assert load_tokenizer(ModelSettings(model=str(folder))).eos_token == "</s>"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ messages[0]['content'] + 5 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 'x'.split(5) }}", "TypeError"),
        ("{{ messages['a'] | length + none }}", "TypeError|UndefinedError"),
        ("{{ [1, 2] | map(attribute='x') | join(5, 6, 7) }}", "TypeError"),
        ("{{ strftime_now(5, 6) }}", "TypeError"),
        ("{% for message in messages %}{{ message.nothing.at_all }}{% endfor %}", "refuses these turns"),
        ("{% if %}", "refuses these turns"),
    ],
)
def test_a_chat_template_that_fails_is_one_sentence(template: str, error: str, tmp_path: Path) -> None:
    folder = zoo.byte_level(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = load_tokenizer(ModelSettings(model=str(folder)))
    with pytest.raises(UserError, match=rf"the chat template of .*({error}).*; set chat"):
        template_for(tokenizer, PLAIN, Chat())
    (found,) = _pair(config(**pair(folder), chat={}))
    assert found.status == "fail"
    assert "the chat template of" in found.message


def test_the_doctor_says_what_a_tokenizer_cannot_write(tmp_path: Path) -> None:
    found = by_name(_pair(config(**pair(zoo.without_digits(tmp_path)))))
    assert found["pair"].status == "ok"
    assert found["tokens"].status == "warning"
    assert "cannot write #### and numbers" in found["tokens"].message


@pytest.mark.parametrize(
    ("settings", "changes", "told"),
    [
        ({"vocab_size": 50}, {}, "has 50 embedding rows"),
        ({"max_position_embeddings": 20}, {"max_length": 512}, "has 20 positions"),
        ({}, {"kv": {"signals": {"topk_logits": 320}}}, "topk_logits is 320, and the tokenizer has 320 tokens"),
    ],
)
def test_the_doctor_says_what_a_model_cannot_read(
    settings: dict[str, Any], changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = zoo.byte_level(tmp_path)
    zoo.configure(folder, **settings)
    found = _pair(config(**pair(folder), **changes))
    assert [check.status for check in found] == ["fail"]
    assert told in found[0].message
    assert found[0].fix


@pytest.mark.parametrize(
    ("build", "told"),
    [(zoo.word_level, "of 417 and 43 tokens"), (zoo.byte_level, "of 417 and 320 tokens")],
)
def test_tokenizers_that_differ_are_counted_in_plain_numbers(
    build: Callable[[Path], Path], told: str, tmp_path: Path
) -> None:
    ours, theirs = (load_tokenizer(ModelSettings(model=str(folder))) for folder in (DEMO, build(tmp_path)))
    shared = len(set(ours.get_vocab().items()) & set(theirs.get_vocab().items()))
    with pytest.raises(UserError, match=rf"tokenizers share {shared} {told} \(not, for example, '.*'\); choose two"):
        require_same_tokenizer(ours, theirs, [])
