"""What each stage depends on: its spec. The canonical JSON of a spec is all that can be a reason to run again.

Content keys of token sets, stores, reference evaluations and benchmarks are parts of it.
"""

from typing import Any, Literal

from pydantic import Field, JsonValue

from kava.config.base import Settings
from kava.config.kv import KvStore
from kava.config.schema import Chat

# What a model, tokenizer or data set is: a revision, or hashes of files.
Identity = dict[str, JsonValue]


def left_out() -> Any:
    """A field that came after keys were made: where there is none, a key does not speak of it."""
    return Field(None, exclude_if=lambda value: value is None)


class DataIdentity(Settings):
    """What rows depend on; a store does not depend on the test questions, and its key has none."""

    source: Identity
    train: Identity
    test: Identity | None = left_out()


class TeacherTokens(Settings):
    """What the teacher's ids and the test questions depend on."""

    format_version: int
    data: DataIdentity
    template: str
    max_length: int
    tokenizer: Identity
    chat: Chat | None = left_out()


class TokensKey(TeacherTokens):
    """What a token set depends on."""

    student_reasoning: Literal["full", "equations"]

    def as_the_teacher_reads(self) -> TeacherTokens:
        """Without the setting that changes neither the teacher's ids nor the test questions."""
        return TeacherTokens.model_validate(self.model_dump(exclude={"student_reasoning"}))


class StoreKey(KvStore):
    """What the bytes of a store depend on."""

    format_version: int
    teacher: Identity
    tokens: TeacherTokens
    topk_format: int | None = left_out()
