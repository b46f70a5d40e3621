"""Tokenise the data of a run: its token set, with the test questions as a task of the harness."""

import logging
import shutil
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from kava.config.jobs import Job, Runtime
from kava.config.schema import ModelSettings
from kava.data.doubts import tokenizer_doubts
from kava.data.fit import Reach, reach, require_end_after_answer, require_fit
from kava.data.overlap import find_overlap
from kava.data.positions import check_before_a_run
from kava.data.prompt import prompt_ids
from kava.data.rows import load_rows
from kava.data.task import write_task
from kava.data.template import Template, template_for
from kava.data.tokens import (
    EQUATION,
    answers,
    content_sha256,
    encode_example,
    equations_only,
    require_same_tokenizer,
    vocabulary_sha256,
)
from kava.errors import UserError
from kava.files import read_json, sha256_json, write_json
from kava.models.load import check_model, load_ends, load_model_config, load_tokenizer, require_readable_model

log = logging.getLogger("kava")


def run(job: Job, runtime: Runtime) -> None:
    models = (runtime.teacher, runtime.student)
    for source in models:
        require_readable_model(load_model_config(source), source.model)
    key = job.spec.key.model_dump()
    loaded = load_rows(runtime.data)
    rows = loaded.splits
    for note in loaded.notes:
        log.info("%s", note)
    teacher, student = load_tokenizer(runtime.teacher), load_tokenizer(runtime.student)
    template = template_for(teacher, key["template"], key.get("chat"))
    texts = [template.fill(row) for row in rows["validation"]]
    require_same_tokenizer(teacher, student, texts)
    prompts = [template.prompt(row["question"]) for row in rows["test"]]
    check_before_a_run(teacher, prompts, runtime)

    splits: dict[str, dict[str, Any]] = {}
    examples = DatasetDict()
    for split in ("train", "validation"):
        examples[split], splits[split] = encode_split(teacher, template, key, split, rows[split])
    asked = reach(prompt_ids(teacher, prompt) for prompt in prompts)
    _check_model("teacher", runtime.teacher, teacher, examples, asked)
    _check_model("student", runtime.student, student, examples, asked)
    for source in models:
        check_model(source)  # headers alone, before the hours of an extraction
    splits["test"] = {"examples": len(rows["test"]), "sha256": sha256_json(rows["test"])}

    warnings = loaded.warnings + tokenizer_doubts(teacher, template, rows["train"])
    for sentence in warnings:
        log.warning("warning: %s", sentence)
    overlap = find_overlap(rows)
    log.info(
        "test: %d questions, %d of them in train or validation, %d with %d words in a row from there",
        overlap["questions"], overlap["same_question"]["count"], overlap["shared_ngram"]["count"], overlap["ngram"],
    )  # fmt: skip

    found = {"overlap": overlap} | ({"warnings": warnings} if warnings else {})
    folder = job.output.parent
    if job.output.is_file() and (manifest := read_json(job.output))["splits"] == splits:
        # What others may be reading right now is already right; a manifest may be older than what is searched for.
        if any(manifest.get(name) != value for name, value in found.items()):
            write_json(job.output, manifest | found)
        return
    write_task(folder / "task", rows["test"], template)
    staged = folder / "examples.partial"
    shutil.rmtree(staged, ignore_errors=True)
    examples.save_to_disk(str(staged))
    shutil.rmtree(folder / "examples", ignore_errors=True)
    staged.rename(folder / "examples")
    write_json(
        job.output,
        {
            "stage": "tokenize",
            "spec": key,
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
    tokenizer: Any, template: Template, key: dict[str, Any], split: str, rows: list[dict[str, str]]
) -> tuple[Any, dict[str, Any]]:
    """Tokenise a split: its `datasets.Dataset`, and what the manifest says of it.

    Raises
    ------
    UserError
        Every example is too long.
    """
    max_length = key["max_length"]
    encoded = [encode_example(tokenizer, template, row) for row in rows]
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
    if key["student_reasoning"] == "equations":
        answers = [rows[number]["answer"] for number in kept]
        of_student = [
            encode_example(tokenizer, template, rows[number] | {"answer": equations_only(answer)})
            for number, answer in zip(kept, answers, strict=True)
        ]
        columns |= {f"student_{name}": [example[name] for example in of_student] for name in ("input_ids", "segments")}
        facts |= {
            "student_tokens": sum(len(ids) for ids in columns["student_input_ids"]),
            "without_equations": sum(EQUATION.search(answer) is None for answer in answers),
        }
        log.info(
            "%s: the student reads %d tokens; %d examples have no equation and leave it no reasoning",
            split, facts["student_tokens"], facts["without_equations"],
        )  # fmt: skip
    facts["sha256"] = content_sha256(columns)
    features = Features({name: List(Value("int8" if "segments" in name else "int32")) for name in columns})
    return Dataset.from_dict(columns, features=features), facts
