"""Tokenise the data of a run: its token set, with the test questions as a task of the harness."""

import logging
import shutil
from dataclasses import replace
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from kava.config.job import Job, Runtime
from kava.config.models import ModelSettings
from kava.config.specs import TokenizeSpec, TokensKey
from kava.data.answers import doubts, teacher_rows
from kava.data.doubts import tokenizer_doubts
from kava.data.fit import Reach, reach, require_end_after_answer, require_fit
from kava.data.overlap import find_overlap
from kava.data.positions import check_before_a_run
from kava.data.prompt import prompt_ids
from kava.data.rows import load_rows
from kava.data.task import write_questions, write_task
from kava.data.template import Template, Wording
from kava.data.tokens import (
    Segment,
    answers,
    content_sha256,
    encode_example,
    require_same_tokenizer,
    vocabulary_sha256,
)
from kava.errors import UserError
from kava.files import read_json, sha256_json, write_json
from kava.models.load import check_model, load_ends, load_model_config, load_tokenizer, require_readable_model
from kava.tasks import task_of
from kava.tasks.base import Row, Task

log = logging.getLogger("kava")


def run(job: Job[TokenizeSpec], runtime: Runtime) -> None:
    models = (runtime.teacher, runtime.student)
    for source in models:
        require_readable_model(load_model_config(source), source.model)
    key, data = job.spec.key, runtime.data
    task, loaded = task_of(data.kind), load_rows(data)
    for note in loaded.notes:
        log.info("%s", note)
    written: dict[str, Any] = {}
    if key.answers:
        facts = read_json(job.inputs["answers"])
        train = teacher_rows(job.inputs["answers"], loaded.splits["train"])
        loaded = replace(loaded, splits=loaded.splits | {"train": train}, warnings=loaded.warnings + doubts(facts))
        written = {"answers": {name: facts[name] for name in ("questions", "answers", "tokens")}}
    teacher, student = load_tokenizer(runtime.teacher), load_tokenizer(runtime.student)
    wording = Wording(teacher, key.template, key.chat, loaded.conversations)
    template, rows = wording.template, {split: wording.rows(of, split) for split, of in loaded.splits.items()}
    texts = [template.fill(row) for row in rows["validation"]]
    require_same_tokenizer(teacher, student, texts)
    prompts = [template.prompt(row["question"]) for row in rows["test"]]
    if task.harness:
        check_before_a_run(teacher, prompts, runtime)

    splits: dict[str, dict[str, Any]] = {}
    examples = DatasetDict()
    for split in ("train", "validation") if task.harness else ("train", "validation", "test"):
        examples[split], splits[split], kept = encode_split(task, teacher, template, key, split, rows[split])
        if split == "test":
            rows[split] = kept
    asked = reach(prompt_ids(teacher, prompt) for prompt in prompts)
    _check_model("teacher", runtime.teacher, teacher, examples, asked)
    _check_model("student", runtime.student, student, examples, asked)
    for source in models:
        check_model(source)  # headers alone, before the hours of an extraction
    # Of test rows that are judged by their likelihood, the ids and what was dropped stand beside it.
    splits["test"] = splits.get("test", {"examples": len(rows["test"])}) | {"sha256": sha256_json(rows["test"])}

    warnings = loaded.warnings + tokenizer_doubts(task, teacher, template, rows["train"])
    for sentence in warnings:
        log.warning("warning: %s", sentence)
    overlap = find_overlap(rows)
    log.info(
        "test: %d questions, %d of them in train or validation, %d with %d words in a row from there",
        overlap["questions"], overlap["same_question"]["count"], overlap["shared_ngram"]["count"], overlap["ngram"],
    )  # fmt: skip

    found = {"overlap": overlap} | written | ({"warnings": warnings} if warnings else {})
    folder = job.output.parent
    if job.output.is_file() and (manifest := read_json(job.output))["splits"] == splits:
        # What others may be reading right now is already right; a manifest may be older than what is searched for.
        if any(manifest.get(name) != value for name, value in found.items()):
            write_json(job.output, manifest | found)
        return
    if task.harness:
        write_task(folder / "task", rows["test"], template, task.harness)
    else:
        write_questions(folder / "task", rows["test"], wording.asked)
    staged = folder / "examples.partial"
    shutil.rmtree(staged, ignore_errors=True)
    examples.save_to_disk(str(staged))
    shutil.rmtree(folder / "examples", ignore_errors=True)
    staged.rename(folder / "examples")
    write_json(
        job.output,
        {
            "stage": "tokenize",
            "spec": key.model_dump(),
            "splits": splits,
            **found,
            "vocabulary_sha256": vocabulary_sha256(teacher),
            "end_token_id": teacher.eos_token_id,
        },
    )


def _check_model(role: str, source: ModelSettings, tokenizer: Any, examples: Any, asked: Reach) -> None:
    """Check that a model has a row for every id, a position for every token, and ends where right answers end."""
    own = f"{role}_input_ids"  # the student's, where it reads less than the teacher
    column = own if own in examples["train"].column_names else "input_ids"
    arrays = examples.with_format("numpy")
    read = reach(ids for split in arrays.values() for ids in split[column])
    largest = max(read.largest_id, asked.largest_id)
    require_fit(role, source.model, load_model_config(source), Reach(largest, read.longest))
    right = answers(arrays["train"][column], arrays["train"][column.replace("input_ids", "segments")])
    require_end_after_answer(role, source.model, load_ends(source, tokenizer), right)


def encode_split(
    task: Task, tokenizer: Any, template: Template, key: TokensKey, split: str, rows: list[Row]
) -> tuple[Any, dict[str, Any], list[Row]]:
    """Tokenise a split: its `datasets.Dataset`, what the manifest says of it, and the rows that are not too long.

    Raises
    ------
    UserError
        Every example is too long, or one has no token that is the prompt's alone.
    """
    max_length = key.max_length
    encoded = [encode_example(task, tokenizer, template, row) for row in rows]
    if headless := [number for number, example in enumerate(encoded) if example["segments"][0] != Segment.PROMPT]:
        raise UserError(
            f"{split} row {headless[0]}: the tokenizer merges all of the prompt with the answer's beginning, which "
            "then nothing stands before; put a space or a line break before {answer} in `template`"
        )
    kept = [number for number, example in enumerate(encoded) if len(example["input_ids"]) <= max_length]
    if not kept:
        raise UserError(f"every {split} example is longer than max_length={max_length}; raise it")
    columns = {name: [encoded[number][name] for number in kept] for name in ("input_ids", "segments")}
    facts: dict[str, Any] = {
        "examples": len(kept),
        "dropped": len(rows) - len(kept),
        "tokens": sum(len(ids) for ids in columns["input_ids"]),
        "tokens_before_dropping": sum(len(example["input_ids"]) for example in encoded),
    }
    log.info(
        "%s: %d examples, %d tokens, %d longer than %d dropped",
        split, len(kept), facts["tokens"], facts["dropped"], max_length,
    )  # fmt: skip
    if key.student_reasoning == "equations":
        shortened = [task.equations_only(rows[number]["answer"]) for number in kept]
        of_student = [
            encode_example(task, tokenizer, template, rows[number] | {"answer": answer})
            for number, answer in zip(kept, shortened, strict=True)
        ]
        columns |= {f"student_{name}": [example[name] for example in of_student] for name in ("input_ids", "segments")}
        facts |= {
            "student_tokens": sum(len(ids) for ids in columns["student_input_ids"]),
            "without_equations": sum(not answer[: task.answer_start(answer)].strip() for answer in shortened),
        }
        log.info(
            "%s: the student reads %d tokens; %d examples have no equation and leave it no reasoning",
            split, facts["student_tokens"], facts["without_equations"],
        )  # fmt: skip
    facts["sha256"] = content_sha256(columns)
    features = Features({name: List(Value("int8" if "segments" in name else "int32")) for name in columns})
    return Dataset.from_dict(columns, features=features), facts, [rows[number] for number in kept]
