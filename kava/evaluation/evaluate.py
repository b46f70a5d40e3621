"""Evaluate one model: answers to the test questions, their marks, and the manifest."""

import json
import logging
from pathlib import Path
from typing import Any

from kava.card import write_card
from kava.config.identity import display_name
from kava.config.jobs import Job, Runtime
from kava.config.schema import ModelSettings
from kava.data.fit import Reach, require_end_after_answer, require_fit
from kava.data.positions import check_prompts
from kava.data.task import TASK, read_prompts
from kava.data.tokens import TokenSet, answers
from kava.device import peak_memory_mib, use_device
from kava.errors import UserError
from kava.evaluation.harness import FLEXIBLE, STRICT, harness_results, samples
from kava.files import read_json, sha256_file, write_atomic, write_json
from kava.models.load import load_ends, load_for_evaluation, load_model_config, load_tokenizer
from kava.running import cost_record

log = logging.getLogger("kava")


def run(job: Job, runtime: Runtime) -> None:
    device = use_device(runtime)
    tokens = TokenSet(job.inputs["tokens"])
    role, settings = job.spec.reference, job.spec.key.evaluation.model_dump()
    folder = job.output.parent
    if role is None:
        student = job.inputs["student"].parent
        source = ModelSettings(model=str(student), trust_remote_code=runtime.student.trust_remote_code)
        distilled = read_json(job.inputs["student"])
        # An evaluation that goes elsewhere is a trial, and no fact about the student.
        own = folder.resolve() == (student.parent / "evaluation").resolve()
    else:
        source = runtime.teacher if role == "teacher" else runtime.student
    require_fit(role or "student", source.model, load_model_config(source), Reach(tokens.reach.largest_id, 0))
    tokenizer = load_tokenizer(source)
    prompts = read_prompts(tokens.task_folder)
    check_prompts(tokenizer, prompts, {source.model: source}, settings["max_new_tokens"])
    right = answers(tokens.input_ids["train"], tokens.segments["train"])
    require_end_after_answer(role or "student", source.model, load_ends(source, tokenizer), right)
    job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder.mkdir(parents=True, exist_ok=True)
    if role is None and own:
        # Without the numbers of an earlier one; and before the work, should the folder not be writable.
        write_card(student, distilled, runtime.sources)
    with cost_record(folder / "cost.json", lambda: peak_memory_mib(device)):
        model = load_for_evaluation(source, device)
        results = harness_results(model, tokenizer, tokens.task_folder, settings)
    lines = samples(results)
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    scores = results["results"][TASK]
    manifest = {
        "stage": "evaluate",
        "spec": job.spec.model_dump(),
        "model": display_name(source.model) if role else source.model,
        "strict_match": float(scores[f"exact_match,{STRICT}"]),
        "flexible_extract": float(scores[f"exact_match,{FLEXIBLE}"]),
        "n": len(lines),
        "questions_sha256": tokens.questions_sha256,
        "samples_sha256": sha256_file(folder / "samples.jsonl"),
    }
    if role is None:
        if read_json(job.inputs["student"]) != distilled:
            raise UserError(f"{student} was trained anew while it was evaluated; evaluate it again")
        if own:
            # What `generate` takes for the longest answer, whoever calls it.
            generation = student / "generation_config.json"
            write_json(generation, read_json(generation) | {"max_new_tokens": settings["max_new_tokens"]})
            write_card(student, distilled, runtime.sources, manifest)
    write_json(job.output, manifest)
    log.info("strict match %.4f, flexible extract %.4f, n %d", manifest["strict_match"],
             manifest["flexible_extract"], manifest["n"])  # fmt: skip
    if role == "teacher" and (sentence := hopeless(lines, folder / "samples.jsonl")):
        log.warning("warning: %s", sentence)


def hopeless(samples: list[dict[str, Any]], file: Path) -> str | None:
    """A sentence on a teacher that answers nothing, for who is about to train students on it; None if it does.

    Parameters
    ----------
    samples
        A row per question: `answer`, and the marks `strict_match` and `flexible_extract`.
    file
        Where they stand.
    """
    if any(sample["strict_match"] or sample["flexible_extract"] for sample in samples):
        return None
    unmarked = sum("####" not in sample["answer"] for sample in samples)
    return (
        f"the teacher answered none of {len(samples)} questions right under either filter, {unmarked} without `####`; "
        f"its answers are in {file}. Students can hardly do better, and arms that all score nothing are not compared: "
        "if answers are cut, raise evaluation.max_new_tokens; if they have another form, change template or chat, or "
        "take a teacher that follows it. Ctrl-C now trains nothing in vain."
    )
