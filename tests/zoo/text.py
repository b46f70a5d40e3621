"""Text that the demo's tokenizer can write, as rows of prompt and response or of messages, and a run over it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.config import Config, load_config
from kava.config.data import TextData
from kava.config.job import Runtime
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY
from kava.data.tokenize import run
from kava.data.tokens import TokenSet

# One line for each turn, and turns of the user and the assistant in turn.
CHAT = (
    "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{% for turn in turns %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}"
    "{% if turn['role'] == 'assistant' and loop.last %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)
NAMES = ("Tom", "Anna", "Mia", "Ben", "Zoe")
THINGS = ("apples", "books", "coins", "shells")


def pair(n: int, what: str = "train") -> dict[str, str]:
    """A row of prompt and response; those of other numbers, or of another split, differ."""
    name, thing, count = NAMES[n % 5], THINGS[n % 4], n + (3 if what == "train" else 40)
    return {"prompt": f"{name} has {count} {thing}. ", "response": f"So {name} has {count} {thing}."}


def conversation(n: int) -> dict[str, list[dict[str, str]]]:
    """A row of messages: two turns of the user, the second of which is answered."""
    row = pair(n)
    turns = [("user", row["prompt"]), ("assistant", "Yes."), ("user", "How many?"), ("assistant", row["response"])]
    return {"messages": [{"role": role, "content": content.strip()} for role, content in turns]}


def text_data(folder: Path, validation: int = 1, **settings: Any) -> TextData:
    return TextData(path=str(folder), validation=validation, **settings)


def text_config(root: Path, data: Mapping[str, Any] | None = None, **changes: Any) -> Config:
    """The demo's models on the text of `root/data`, with a cache below `root`."""
    rows = {"kind": "text", "path": str(root / "data"), "validation": 1} | dict(data or {})
    return load_config(REPOSITORY / "config.yaml", {"data": rows, "cache_dir": str(root / "cache")} | changes)


def token_set(folder: Path, **changes: Any) -> TokenSet:
    config = text_config(folder, **changes)
    job = Jobs(config).tokenize
    run(job, Runtime.of(config))
    return TokenSet(job.output)
