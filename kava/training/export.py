"""A trained student as it leaves KAVA: what `generate` needs to answer as in evaluation, and no template beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.config.schema import Chat
from kava.data.prompt_format import KEY, PromptFormat
from kava.data.template import template_for
from kava.errors import UserError
from kava.models.load import plain_greedy

PROBE = "How many?"


def export(student: Any, tokenizer: Any, prompt: PromptFormat, text: Mapping[str, Any], folder: Path) -> None:
    """Save a student and its tokenizer for `from_pretrained`, with the prompt that it was trained on.

    Parameters
    ----------
    student, tokenizer
        A causal language model in the dtype that it is to have, and its tokenizer.
    prompt
        What it was asked.
    text
        `template`, and `chat` where the run spoke by a chat template, as in the key of the token set.
    folder
        Of the student.
    """
    student.config.update({KEY: prompt.to_dict()})
    student.generation_config = plain_greedy(student.generation_config)
    student.save_pretrained(folder)
    if not speaks(tokenizer, prompt, text):
        tokenizer.chat_template = None
        # Of an earlier export to this folder.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)


def speaks(tokenizer: Any, prompt: PromptFormat, text: Mapping[str, Any]) -> bool:
    """Whether a tokenizer's own chat template makes the prompt that was trained; a base model's may be another one."""
    if tokenizer.chat_template is None:
        return False
    try:
        # Without `chat`, where rows were conversations.
        chat = Chat.model_validate(text.get("chat") or {})
        return template_for(tokenizer, text["template"], chat).prompt(PROBE) == prompt.fill(PROBE)
    except UserError:  # it refuses these turns
        return False
