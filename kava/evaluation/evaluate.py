"""Evaluate one model: its answers to the test questions and their marks, or how likely the right ones are to it."""

import json
import logging
from math import isfinite
from statistics import fmean
from typing import Any

from kava.card import write_card
from kava.config.identity import display_name
from kava.config.job import Job, Runtime
from kava.config.schema import ModelSettings
from kava.config.specs import EvaluateSpec
from kava.data.fit import Reach, require_end_after_answer, require_fit
from kava.data.positions import check_prompts
from kava.data.task import read_prompts, read_rows
from kava.data.tokens import TokenSet, answers
from kava.device import peak_memory_mib, use_device
from kava.errors import UserError
from kava.evaluation.harness import harness_results, samples
from kava.evaluation.likelihood import answer_nll
from kava.files import read_json, sha256_file, write_atomic, write_json
from kava.models.load import load_ends, load_for_evaluation, load_model_config, load_tokenizer
from kava.running import cost_record
from kava.tasks.metric import ANSWER_NLL

log = logging.getLogger("kava")


def run(job: Job[EvaluateSpec], runtime: Runtime) -> None:
    device = use_device(runtime)
    tokens = TokenSet(job.inputs["tokens"])
    role, settings = job.spec.reference, job.spec.key.evaluation
    folder = job.output.parent
    if role is None:
        student = job.inputs["student"].parent
        source = ModelSettings(model=str(student), trust_remote_code=runtime.student.trust_remote_code)
        distilled = read_json(job.inputs["student"])
        # An evaluation that goes elsewhere is a trial, and no fact about the student.
        own = folder.resolve() == (student.parent / "evaluation").resolve()
    else:
        source = runtime.teacher if role == "teacher" else runtime.student
    harness = tokens.task.harness
    longest = 0 if harness else max(map(len, tokens.test_ids or []))
    of_tokens = Reach(tokens.reach.largest_id, longest)
    require_fit(role or "student", source.model, load_model_config(source), of_tokens)
    tokenizer = load_tokenizer(source)
    if harness:
        prompts = read_prompts(tokens.task_folder)
        check_prompts(tokenizer, prompts, {source.model: source}, settings.max_new_tokens)
    right = answers(tokens.input_ids["train"], tokens.segments["train"])
    require_end_after_answer(role or "student", source.model, load_ends(source, tokenizer), right)
    job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder.mkdir(parents=True, exist_ok=True)
    if role is None and own:
        # Without the numbers of an earlier one; and before the work, should the folder not be writable.
        write_card(student, distilled, runtime.sources)
    with cost_record(folder / "cost.json", lambda: peak_memory_mib(device)):
        model = load_for_evaluation(source, device)
        if harness:
            lines = samples(harness_results(model, tokenizer, tokens.task_folder, settings), harness)
        else:
            lines = likelihoods(model, tokens, settings.batch_size)
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    means = {metric.name: fmean(line[metric.name] for line in lines) for metric in tokens.task.metrics}
    manifest = {
        "stage": "evaluate",
        "spec": job.spec.model_dump(),
        "model": display_name(source.model) if role else source.model,
        **means,
        "n": len(lines),
        "questions_sha256": tokens.questions_sha256,
        "samples_sha256": sha256_file(folder / "samples.jsonl"),
    }
    if role is None:
        if read_json(job.inputs["student"]) != distilled:
            raise UserError(f"{student} was trained anew while it was evaluated; evaluate it again")
        if own:
            if harness:  # what `generate` takes for the longest answer, whoever calls it
                generation = student / "generation_config.json"
                write_json(generation, read_json(generation) | {"max_new_tokens": settings.max_new_tokens})
            write_card(student, distilled, runtime.sources, manifest)
    write_json(job.output, manifest)
    said = ", ".join(f"{metric.label} {means[metric.name]:.4f}" for metric in tokens.task.metrics)
    log.info("%s, n %d", said, manifest["n"])
    if role == "teacher" and (sentence := tokens.task.hopeless(lines, folder / "samples.jsonl")):
        log.warning("warning: %s", sentence)


def likelihoods(model: Any, tokens: TokenSet, batch_size: int) -> list[dict[str, Any]]:
    """One record per test row: how likely its answer is to the model, which writes none itself.

    Raises
    ------
    UserError
        A likelihood is not finite.
    """
    assert tokens.test_ids is not None, "a token set whose answers are not generated has its test examples"
    assert tokens.test_segments is not None
    values = answer_nll(model, tokens.test_ids, tokens.test_segments, batch_size)
    if wrong := [number for number, value in enumerate(values) if not isfinite(value)]:
        raise UserError(
            f"the likelihood of the answer to test row {wrong[0]} is {values[wrong[0]]} ({len(wrong)} of {len(values)} "
            f"are no numbers): logits of {model.name_or_path} overflow, or are NaN; lower its learning rate, "
            "or load it in another dtype"
        )
    return [
        {"doc_id": number, "question": row["question"], "gold": row["answer"], "answer": "", ANSWER_NLL.name: value}
        for number, (row, value) in enumerate(zip(read_rows(tokens.task_folder), values, strict=True))
    ]
