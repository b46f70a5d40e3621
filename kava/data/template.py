"""The text of an example: the configured template as it stands, or as a turn of the tokenizer's own chat template."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError

from kava.errors import UserError
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


def template_for(tokenizer: Any, template: str, chat: Mapping[str, Any] | None) -> Template:
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
    name = tokenizer.name_or_path
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {name} has no chat template, and `chat` asks for one; set chat: null, or choose an "
            "instruct model as teacher"
        )
    turns = [{"role": "user", "content": plain.prompt(QUESTION)}, {"role": "assistant", "content": ANSWER}]
    if chat["system"] is not None:
        turns.insert(0, {"role": "system", "content": chat["system"]})
    try:
        chat_template = SAME_DATE + tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(turns, chat_template=chat_template, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the chat template of {name} refuses these turns ({error}); set chat.system: null") from None
    except Exception as error:  # a template is somebody else's program, and may fail in any way
        raise UserError(
            f"the chat template of {name} fails ({type(error).__name__}: {first_line(error)}); set chat: null, or mend "
            "the template"
        ) from None
    before = text.split(ANSWER)[0]
    if before.count(QUESTION) != 1 or text.count(ANSWER) != 1:
        raise UserError(f"the chat template of {name} does not show each turn once; set chat: null")
    if tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(tokenizer.bos_token)  # it comes with every text
    return Template(before.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{question}") + "{answer}", " ")
