"""Whether prompt and answer fit a model's positions, for every test question and before anything is computed.

The harness would cut a prompt from the left to make room for `max_new_tokens`, and a model without that question scores
zero. Only the model's configuration sets a limit: `model_max_length` of a tokenizer cuts nothing, since nobody asks the
tokenizer to.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.config.job import Job, Runtime
from kava.config.models import ModelSettings
from kava.config.schema import Config
from kava.data.fit import Reach, lack, longest_prompt, positions, require_fit
from kava.data.task import PROMPT, read_prompts
from kava.errors import UserError
from kava.tasks import task_of

log = logging.getLogger("kava")


def check_positions(job: Job, runtime: Runtime) -> None:
    """Compare the test questions of a stage's token set with the positions of teacher and student.

    Where no answers are generated, test rows are examples like those of training, whose lengths `require_fit` compares.

    Raises
    ------
    UserError
        The longest prompt and an answer do not fit; the sentence has the largest `max_new_tokens` that does.
    """
    from kava.models.load import load_tokenizer

    folder = job.inputs["tokens"].parent / "task"
    if (folder / PROMPT).is_file():
        return
    check_before_a_run(load_tokenizer(runtime.student), read_prompts(folder), runtime)


def check_before_a_run(tokenizer: Any, prompts: Sequence[str], runtime: Runtime) -> None:
    """As `check_positions`, for prompts that have no token set yet; says so where a configuration is not at hand."""
    check_prompts(tokenizer, prompts, _models(runtime), runtime.evaluation.max_new_tokens)


def check_prompts(
    tokenizer: Any, prompts: Sequence[str], models: Mapping[str, ModelSettings], max_new_tokens: int
) -> None:
    """Raise `UserError` unless every prompt and an answer fit each model (name → source) that has a configuration."""
    from kava.models.load import load_model_config

    limits: dict[str, int | None] = {}
    for name, source in models.items():
        try:
            limits[name] = positions(load_model_config(source))
        except UserError as error:  # the stage that loads the model refuses it; a token set needs none
            log.warning("warning: it is not known whether prompts fit the positions of %s: %s", name, error)
    if sentence := lack(limits, longest_prompt(tokenizer, prompts), max_new_tokens):
        raise UserError(sentence)


@dataclass(frozen=True)
class Prompts:
    """Whether all test questions fit: `lack` says why not, `unknown` why that cannot be said yet."""

    lack: str | None = None
    unknown: str | None = None

    def __str__(self) -> str:
        return self.lack or (f"not known: {self.unknown}" if self.unknown else "all test questions fit")


def look(config: Config) -> Prompts:
    """Compare the test questions of a configuration with its models, where all of them are on this machine."""
    try:
        return Prompts(lack=_lack_of(config))
    except UserError as error:
        return Prompts(unknown=str(error))


def _lack_of(config: Config) -> str | None:
    from kava.data.rows import load_rows
    from kava.data.template import Wording
    from kava.data.tokens import encode_example
    from kava.hub import cached, repositories
    from kava.models.load import load_model_config, load_tokenizer

    away = [str(repository) for repository in repositories(config).values() if repository and not cached(repository)]
    if away:
        raise UserError(f"{away[0]} is not on this machine")
    runtime, task, rows = Runtime.of(config), task_of(config.data.kind), load_rows(config.data)
    teacher = load_tokenizer(runtime.teacher)
    wording = Wording(teacher, config.template, config.chat, rows.conversations)
    test = wording.rows(rows.splits["test"], "test")
    if task.harness:
        prompts = [wording.template.prompt(row["question"]) for row in test]
        limits = {name: positions(load_model_config(source)) for name, source in _models(runtime).items()}
        return lack(limits, longest_prompt(teacher, prompts), config.evaluation.max_new_tokens)
    lengths = [len(encode_example(task, teacher, wording.template, row)["input_ids"]) for row in test]
    longest = max((tokens for tokens in lengths if tokens <= config.max_length), default=0)
    try:
        for role, source in (("teacher", runtime.teacher), ("student", runtime.student)):
            require_fit(role, source.model, load_model_config(source), Reach(-1, longest))
    except UserError as error:
        return str(error)
    return None


def _models(runtime: Runtime) -> dict[str, ModelSettings]:
    models = {"teacher": runtime.teacher, "student": runtime.student, **runtime.references}
    return {f"the {role} {source.model}": source for role, source in models.items()}
