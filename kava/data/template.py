"""The text of an example: the configured template as it stands, or the tokenizer's own chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from kava.config.data import PLAIN
from kava.config.schema import Chat
from kava.errors import UserError
from kava.tasks.base import Row
from kava.text import first_line

# Stand-ins that no tokenizer's chat template takes for anything but text.
QUESTION, ANSWER = "\ue000question\ue000", "\ue000answer\ue000"
# Llama's chat template writes today's date into the prompt: ids would change at midnight, and their key would not.
SAME_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


class Template(NamedTuple):
    """Text of one example.

    Attributes
    ----------
    text
        A format string with `{question}`, ending in `{answer}`.
    trimmed
        Characters at the prompt's end that belong to the first token of the answer; None for all white space.
    """

    text: str
    trimmed: str | None = None

    def fill(self, row: Mapping[str, str]) -> str:
        """The whole text of a row of question and answer."""
        return self.text.format(question=row["question"], answer=row["answer"])

    def prompt(self, question: str) -> str:
        """What a model is asked: the text up to the answer."""
        return self.text.removesuffix("{answer}").format(question=question).rstrip(self.trimmed)

    def answer(self, question: str, continued: str) -> str:
        """A row's answer from what a model wrote behind the prompt, without the white space that the prompt lost."""
        lost = self.text.removesuffix("{answer}").format(question=question)[len(self.prompt(question)) :]
        return continued.removeprefix(lost) if continued.startswith(lost) else continued.lstrip()


class Wording:
    """How the rows of a run become text.

    Parameters
    ----------
    tokenizer
        The teacher's.
    template, chat
        As configured; `chat` as JSON values.
    conversations
        Whether rows are conversations (`kava.tasks.base.Rows`), which the chat template words whole.

    Attributes
    ----------
    template
        Text of an example, for what `rows` gives.
    asked
        What a question that is no row is put into; for conversations the user's one turn.

    Raises
    ------
    UserError
        As `template_for`; or `template` is configured for conversations, which do not go through it.
    """

    def __init__(self, tokenizer: Any, template: str, chat: Chat | None, conversations: bool = False) -> None:
        self._tokenizer, self._conversations = tokenizer, conversations
        self._system = chat.system if chat else None
        if not conversations:
            self.template = self.asked = template_for(tokenizer, template, chat)
            return
        if template != PLAIN:
            raise UserError(
                f"rows are messages, which the chat template words, and template is {template!r}; remove template, or "
                "give rows of prompt and response"
            )
        _require_chat_template(tokenizer, "the rows are messages; choose an instruct model as teacher, or give rows of "
                               "prompt and response")  # fmt: skip
        self.template = Template(PLAIN, " ")
        self.asked = template_for(tokenizer, PLAIN, chat or Chat())

    def rows(self, rows: Sequence[Row], split: str) -> list[Row]:
        """Rows whose `question` is text: what the model reads before the answer, if they are conversations."""
        if not self._conversations:
            return list(rows)
        return [row | {"question": self._before_the_answer(row, f"{split} row {n}")} for n, row in enumerate(rows)]

    def _before_the_answer(self, row: Row, where: str) -> str:
        turns = json.loads(row["question"])
        if self._system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self._system})
        fix = f"correct or drop {where}"
        return _before_the_answer(self._tokenizer, turns, f"the turns of {where}", (fix, fix, fix))


def template_for(tokenizer: Any, template: str, chat: Chat | None) -> Template:
    """The template of a run.

    Parameters
    ----------
    tokenizer
        The teacher's.
    template, chat
        As configured. With `chat`, the prompt of the template is the user's turn and the answer the assistant's; all
        that the chat template puts before the answer is prompt, line breaks included.

    Raises
    ------
    UserError
        The tokenizer has no chat template, or one that has no place for a turn.
    """
    plain = Template(template)
    if chat is None:
        return plain
    _require_chat_template(tokenizer, "`chat` asks for one; set chat: null, or choose an instruct model as teacher")
    turns = [{"role": "user", "content": plain.prompt(QUESTION)}]
    if chat.system is not None:
        turns.insert(0, {"role": "system", "content": chat.system})
    fixes = "set chat.system: null", "set chat: null, or correct the template", "set chat: null"
    before = _before_the_answer(tokenizer, turns, "these turns", fixes)
    if before.count(QUESTION) != 1:
        raise UserError(f"the chat template of {tokenizer.name_or_path} does not show each turn once; set chat: null")
    return Template(before.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{question}") + "{answer}", " ")


def _require_chat_template(tokenizer: Any, why: str) -> None:
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no chat template, and {why}")


def _before_the_answer(tokenizer: Any, turns: list[dict[str, str]], what: str, fixes: tuple[str, str, str]) -> str:
    """What a chat template writes before the assistant's answer to some turns, without a start token.

    `fixes` are what to do about a template that refuses the turns, that fails, and that shows the answer not once.
    """
    name = tokenizer.name_or_path
    try:
        chat_template = SAME_DATE + tokenizer.get_chat_template()
        answered = [*turns, {"role": "assistant", "content": ANSWER}]
        text: str = tokenizer.apply_chat_template(answered, chat_template=chat_template, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the chat template of {name} refuses {what} ({error}); {fixes[0]}") from None
    except Exception as error:  # a template is somebody else's program, and may fail in any way
        raise UserError(
            f"the chat template of {name} fails ({type(error).__name__}: {first_line(error)}); {fixes[1]}"
        ) from None
    if text.count(ANSWER) != 1:
        raise UserError(f"the chat template of {name} does not show each turn once; {fixes[2]}")
    before = text.split(ANSWER)[0]
    if tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(tokenizer.bos_token)  # it comes with every text
    return before
