"""Any text: rows of `prompt` and `response`, or of chat `messages` of which the last is the assistant's.

The whole response is the segment `answer`, with its end token, and there is no reasoning. So logits are distilled on
every token of the response, tokens are scored by how much the response attends to them (`candidates: all`), and what
looks for the end of a reasoning is refused. The other choice, the response as reasoning and the end token alone as
answer, would leave `logit_kd` one token, and R-KV the attention of a token that has read everything.
"""

import json
from collections.abc import Mapping
from typing import Any

from kava.config.data import TextData
from kava.errors import UserError
from kava.tasks.base import Lengths, Row, Rows, Task, Written
from kava.tasks.files import Reading, load_folder, missing, require_text
from kava.tasks.metric import ANSWER_NLL

ROLES = ("system", "user", "assistant")
PAIR, MESSAGES = ("prompt", "response"), "messages"
# Of a row, beside question and answer, while it is not known whether all rows of the data are alike.
FORM = "form"


class Text(Task):
    """Students are judged by the mean negative log-likelihood of the response's tokens; nothing is generated."""

    kind = "text"
    metrics = (ANSWER_NLL,)
    essential = "the responses"
    form = "of prompt and response, or of messages"
    # English under tokenizers of 32,000 to 152,000 tokens has 3.5 to 4.5 characters a token; code and other languages
    # have fewer, so that an estimate without a tokenizer is on the safe side.
    lengths = Lengths(tokens=None, characters_per_token=3.0, shortest_prompt=2, longest_answer=None)

    def load(self, data: TextData) -> Rows:
        """Rows of a folder, all of one form.

        Raises
        ------
        UserError
            What `kava.tasks.files.load_folder` raises; some rows have `messages`, and others not.
        """
        rows = load_folder(data, READING)
        forms: dict[str, str] = {}
        for split, of_split in rows.splits.items():
            for number, row in enumerate(of_split):
                forms.setdefault(row.pop(FORM), f"{split} row {number}")
        if len(forms) > 1:
            (one, first), (other, second) = forms.items()
            raise UserError(
                f"{data.path} holds rows of two forms, {one} ({first}) and {other} ({second}); write all of them in one"
            )
        return Rows(rows.splits, rows.notes, rows.warnings, conversations=MESSAGES in forms)

    def answer_start(self, answer: str) -> None:
        del answer

    def essentials(self, text: str) -> Any:
        return "".join(text.split())  # tokenizers differ in what they make of white space

    def written(self, text: str, ended: bool, gold: str) -> Written | None:
        del gold
        return Written(text.rstrip(), None) if ended and text.strip() else None


def _row(record: Mapping[str, Any]) -> Row:
    # Columns of a Parquet file are there in every row, as nulls where a row has none.
    pair = [name for name in PAIR if record.get(name) is not None]
    if record.get(MESSAGES) is not None:
        if pair:
            raise ValueError(f"{' and '.join(pair)} and messages are there both; keep one of them")
        return _conversation(record[MESSAGES])
    for name in PAIR:
        if name not in record:
            raise missing(name, dict(record))
    prompt, response = (_filled(name, record[name], "prompt and response") for name in PAIR)
    return {"question": prompt, "answer": response, FORM: "prompt and response"}


def _conversation(messages: Any) -> Row:
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("messages must be a list of two at least, a user's and then the assistant's answer")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {number} is no object with role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"message {number} has the role {message['role']!r}; allowed: {', '.join(ROLES)}")
        content = _filled(f"the content of message {number}", message["content"], "contents")
        turns.append({"role": message["role"], "content": content})
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"the last message is of the {turns[-1]['role']}, and has to be the assistant's answer")
    *before, last = turns
    return {"question": json.dumps(before, ensure_ascii=False), "answer": last["content"], FORM: MESSAGES}


def _filled(name: str, value: Any, fields: str) -> str:
    text = require_text(name, value, fields)
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


READING = Reading((*PAIR, MESSAGES), "prompt and response, both text, or with messages of role and content", _row)
