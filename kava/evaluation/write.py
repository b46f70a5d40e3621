"""Have the teacher answer the training questions, file by file, and say how many of its answers are kept."""

import logging
import time
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kava.config.job import Job, Runtime
from kava.config.specs import WriteSpec
from kava.data.answers import WrittenAnswer, changed_files, read_shard, shard_path, write_shard
from kava.data.fit import longest_prompt, positions
from kava.data.prompt import prompt_ids
from kava.data.rows import load_rows
from kava.data.template import Template, Wording
from kava.data.tokens import answers as answer_ids
from kava.data.tokens import encode_example
from kava.device import peak_memory_mib, use_device
from kava.errors import Interrupted, UserError
from kava.evaluation.generate import generate, own_uniforms
from kava.evaluation.harness import prepare
from kava.evaluation.written import seal
from kava.files import read_json, remove_partial
from kava.models.load import load_ends, load_for_evaluation, load_model_config, load_tokenizer
from kava.running import add_cost, progress_interval
from kava.tasks import task_of
from kava.tasks.base import Row, Task

log = logging.getLogger("kava")


def unchecked(_job: Job[WriteSpec], _runtime: Runtime, _longest_prompt: int) -> None:
    """Refuse nothing."""


def run(
    job: Job[WriteSpec],
    runtime: Runtime,
    before_loading: Callable[[Job[WriteSpec], Runtime, int], None] = unchecked,
) -> None:
    """Write the files that are lacking, and the manifest.

    Parameters
    ----------
    job, runtime
        Of stage `write`.
    before_loading
        Called with the tokens of the longest prompt before the teacher is loaded, which it may refuse.
    """
    folder, settings = job.output.parent, job.spec.key.answers
    if job.output.is_file():
        changed = changed_files(read_json(job.output), folder)
        if not changed:
            log.info("%s is finished, and every file is as it was written", folder)
            return
        job.output.unlink()  # what it vouches for is about to change
        for name in changed:
            (folder / name).unlink(missing_ok=True)
    remove_partial(folder, "answers-*")
    device, questions = use_device(runtime), Questions(job, runtime)
    shards = ceil(len(questions.rows) / settings.shard_questions)
    lacking = [shard for shard in range(shards) if not shard_path(folder, shard).is_file()]
    log.info("answers %s: %d of %d files to write", folder, len(lacking), shards)
    if lacking:
        before_loading(job, runtime, questions.require_room())
        started = time.monotonic()
        try:
            _write(questions, runtime, device, folder, lacking)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; finished files are kept: run again to go on with the others") from None
        add_cost(folder / "cost.json", time.monotonic() - started, peak_memory_mib(device))
    lines = [line for shard in range(shards) for line in read_shard(shard_path(folder, shard))]
    seal(job, lines, questions.rows, questions.length)


def _write(questions: "Questions", runtime: Runtime, device: torch.device, folder: Path, shards: list[int]) -> None:
    model = load_for_evaluation(runtime.teacher, device)
    prepare(model, questions.tokenizer)
    count = sum(len(questions.asked(shard)) for shard in shards)
    done = kept = tokens = 0
    started = time.monotonic()
    with tqdm(total=count, unit="ans", desc="write", mininterval=progress_interval(), delay=1e-9) as bar:
        for shard in shards:
            lines = []
            for batch in questions.batches(shard):
                of_batch = questions.write(model, batch)
                done, tokens = done + len(batch), tokens + sum(line.tokens for line in of_batch)
                kept += sum(line.kept for line in of_batch)
                rate = tokens / (time.monotonic() - started)
                bar.set_postfix_str(f"{rate:.0f} tok/s, {kept / done:.0%} kept", refresh=False)
                bar.update(len(batch))
                lines += of_batch
            write_shard(shard_path(folder, shard), each_once(lines))


class Questions:
    """The training questions of a job as the teacher is asked them."""

    def __init__(self, job: Job[WriteSpec], runtime: Runtime) -> None:
        self._source, self._settings = runtime.teacher, job.spec.key.answers
        self._task: Task = task_of(runtime.data.kind)
        self.tokenizer = load_tokenizer(runtime.teacher)
        loaded = load_rows(runtime.data)
        wording = Wording(self.tokenizer, job.spec.key.template, job.spec.key.chat, loaded.conversations)
        self._template: Template = wording.template
        self.rows: list[Row] = wording.rows(loaded.splits["train"], "train")
        self._prompts = [self._template.prompt(row["question"]) for row in self.rows]
        harness = self._task.harness
        self._stop: list[str] = list(harness.definition["generation_kwargs"]["until"]) if harness else []
        self._ends = list(load_ends(runtime.teacher, self.tokenizer))

    def require_room(self) -> int:
        """Tokens of the longest prompt; `UserError` if that and an answer are more than the teacher has positions."""
        longest, limit = longest_prompt(self.tokenizer, self._prompts), positions(load_model_config(self._source))
        most = self._settings.max_new_tokens
        if limit is not None and longest.tokens + most > limit:
            room = limit - longest.tokens
            fix = f"set data.answers.max_new_tokens to {room} at most" if room > 0 else "drop such rows"
            raise UserError(
                f"the longest prompt (training row {longest.question}, from 0) has {longest.tokens:,} tokens and "
                f"data.answers.max_new_tokens is {most:,}, but the teacher {self._source.model} has {limit:,} "
                f"positions; {fix}, or choose a teacher with more"
            )
        return longest.tokens

    def asked(self, shard: int) -> list[tuple[int, int]]:
        """Question and sample of each answer of a file, in its order."""
        size, first = self._settings.shard_questions, shard * self._settings.shard_questions
        questions = range(first, min(first + size, len(self.rows)))
        return [(question, sample) for question in questions for sample in range(self._settings.samples)]

    def batches(self, shard: int) -> list[list[tuple[int, int]]]:
        """The same in batches of prompts of like length.

        Padding changes the rounding of low-precision models, so batches depend on the file alone: an interrupted
        writing then gives the answers of an uninterrupted one.
        """
        lengths = {question: len(prompt_ids(self.tokenizer, self._prompts[question])) for question, _ in
                   self.asked(shard)}  # fmt: skip
        like = sorted(self.asked(shard), key=lambda asked: (lengths[asked[0]], asked))
        size = self._settings.batch_size
        return [like[first : first + size] for first in range(0, len(like), size)]

    def write(self, model: Any, batch: Sequence[tuple[int, int]]) -> list[WrittenAnswer]:
        """One batch of answers, each judged by itself."""
        settings = self._settings
        prompts = [self._prompts[question] for question, _ in batch]
        drawn = None
        if settings.temperature > 0:
            numbers = [own_uniforms(settings.seed, *asked, settings.max_new_tokens) for asked in batch]
            drawn = np.stack(numbers), settings.temperature, settings.top_p
        found = generate(model, self.tokenizer, prompts, self._stop, settings.max_new_tokens, drawn)
        return [
            self._judged(*asked, self._template.answer(self.rows[asked[0]]["question"], text), tokens, ended)
            for asked, (text, tokens, ended) in zip(batch, found, strict=True)
        ]

    def _judged(self, question: int, sample: int, text: str, tokens: int, ended: bool) -> WrittenAnswer:
        row = self.rows[question]
        written = self._task.written(text, ended, row["answer"])
        if written and self._has_an_end_within(row | {"answer": written.answer}):
            written = None
        kept = written is not None and (self._settings.keep == "all" or bool(written.right))
        answer, right = (written.answer, written.right) if written else (None, None)
        return WrittenAnswer(question, sample, text, answer, right, kept, ended, tokens)

    def _has_an_end_within(self, row: Row) -> bool:
        """Whether the teacher spelled one of its end tokens, which a model that learns the answer would stop at."""
        return bool(np.isin(self._ids(row), self._ends).any())

    def length(self, row: Row) -> int:
        """Tokens of a row's answer as it is trained on, its end token included."""
        return len(self._ids(row)) + 1

    def _ids(self, row: Row) -> np.ndarray:
        example = encode_example(self._task, self.tokenizer, self._template, row)
        (ids,) = answer_ids([np.array(example["input_ids"])], [np.array(example["segments"])])
        return ids


def each_once(lines: Sequence[WrittenAnswer]) -> list[WrittenAnswer]:
    """Lines in the order of questions and samples; of equal answers to one question the first alone is kept."""
    found, seen = [], set()
    for line in sorted(lines, key=lambda line: (line.question, line.sample)):
        again = (line.question, line.answer) in seen
        seen.add((line.question, line.answer))
        found.append(WrittenAnswer(**vars(line) | {"kept": line.kept and not again}))
    return found
