"""What the teacher wrote, counted: the manifest of its answers, and sentences on it."""

import logging
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from kava.config.job import Job
from kava.config.specs import WriteSpec
from kava.data.answers import WrittenAnswer, shard_path
from kava.errors import UserError
from kava.files import checksums, write_json
from kava.tasks.base import Row

log = logging.getLogger("kava")


def seal(
    job: Job[WriteSpec], lines: Sequence[WrittenAnswer], rows: Sequence[Row], length: Callable[[Row], int]
) -> None:
    """Write the manifest of finished files.

    Parameters
    ----------
    job
        Of stage `write`.
    lines
        Of all files.
    rows
        Training rows, with their gold answers.
    length
        Tokens of a row's answer.

    Raises
    ------
    UserError
        No row is left to train on.
    """
    facts = counted(lines, rows, job.spec.key.answers.otherwise, length)
    questions, answers, tokens = facts["questions"], facts["answers"], facts["tokens"]
    if questions["kept"] + questions["gold"] == 0:
        raise UserError(
            f"none of the teacher's {answers['written']} answers is kept ({_why(answers)}), and data.answers.otherwise "
            f"is drop, so that nothing is left to train on; they are in {job.output.parent}. Raise "
            "data.answers.max_new_tokens if they are cut; change template or chat if they have another form; or set "
            "data.answers.keep: all or data.answers.otherwise: gold"
        )
    folder = job.output.parent
    shards = -(-len(rows) // job.spec.key.answers.shard_questions)
    files = checksums(folder, [shard_path(folder, shard) for shard in range(shards)])
    write_json(job.output, {"stage": "write", "spec": job.spec.key.model_dump(), **facts, "shards": files})
    lengths = [f"{mean:.1f} tokens {whose}" for whose, mean in
               (("a kept answer", tokens["kept_mean"]), ("a gold one", tokens["gold_mean"])) if mean]  # fmt: skip
    log.info(
        "written: %d answers to %d questions; %d kept, to %d questions, %d with the gold answer, %d dropped; %s",
        answers["written"], len(rows), answers["kept"], questions["kept"], questions["gold"], questions["dropped"],
        ", ".join(lengths),
    )  # fmt: skip


def counted(
    lines: Sequence[WrittenAnswer], rows: Sequence[Row], otherwise: str, length: Callable[[Row], int]
) -> dict[str, Any]:
    """Counts as JSON values: every question is kept, gold or dropped; every answer is kept or not.

    `tokens.written` is what the teacher wrote; the means are of answers as they are trained on.
    """
    kept = [line for line in lines if line.kept]
    without = len(rows) - len({line.question for line in kept})
    known = [line.right for line in lines if line.right is not None]
    lengths = [length(rows[line.question] | {"answer": line.answer or ""}) for line in kept]
    return {
        "questions": {
            "asked": len(rows),
            "kept": len(rows) - without,
            "gold": without if otherwise == "gold" else 0,
            "dropped": without if otherwise == "drop" else 0,
        },
        "answers": {
            "written": len(lines),
            "kept": len(kept),
            "right": sum(known) if known else None,
            "cut": sum(not line.ended for line in lines),
        },
        "tokens": {
            "written": sum(line.tokens for line in lines),
            "kept_mean": fmean(lengths) if lengths else None,
            "kept_longest": max(lengths, default=None),
            "gold_mean": fmean(map(length, rows)),
        },
    }


def _why(answers: dict[str, Any]) -> str:
    right = "" if answers["right"] is None else f"{answers['right']} right, "
    return f"{right}{answers['cut']} cut at the longest length"
