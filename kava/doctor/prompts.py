"""Whether the test questions fit the positions of teacher and student."""

from kava.config.schema import Config
from kava.data.positions import look
from kava.doctor.check import Check, fail, ok, warning
from kava.tasks import task_of

NAME = "prompts"


def prompts(config: Config) -> Check:
    """Of the longest test question and `evaluation.max_new_tokens`; nothing is downloaded."""
    found = look(config)
    if found.lack:
        what, _, fix = found.lack.rpartition("; ")
        return fail(NAME, what, fix)
    if found.unknown:
        return warning(NAME, f"not compared with the models' positions: {found.unknown}", "get it, and run this again")
    if task_of(config.data.kind).harness is None:
        return ok(NAME, "the longest test row fits teacher and student")
    return ok(NAME, f"the longest and an answer of {config.evaluation.max_new_tokens} tokens fit teacher and student")
