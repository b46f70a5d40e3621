"""Evaluate one model: its answers to the test questions and their marks, and how likely the right ones are to it."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kava.card import write_card
from kava.config.identity import display_name, layers_named
from kava.config.job import Job, Runtime
from kava.config.models import ModelSettings, Student, Teacher
from kava.config.specs import EvaluateSpec
from kava.data.fit import require_end_after_answer
from kava.data.positions import check_prompts
from kava.data.task import read_prompts
from kava.data.tokens import TokenSet, answers, vocabulary_sha256
from kava.device import peak_memory_mib, use_device
from kava.errors import UserError
from kava.evaluation.agreement import read_likeliest, write_likeliest
from kava.evaluation.at_steps import kept_students, seconds_at, write_steps
from kava.evaluation.judge import Judge, Judgement, in_words, means
from kava.evaluation.questions import Questions, require_room, test_questions, validation_questions
from kava.files import read_json, sha256_file, write_atomic, write_json
from kava.models.load import load_ends, load_for_evaluation, load_model_config, load_tokenizer
from kava.models.placement import Placed, place, resident
from kava.running import cost_record

log = logging.getLogger("kava")


def run(job: Job[EvaluateSpec], runtime: Runtime) -> None:
    device = use_device(runtime)
    tokens = TokenSet(job.inputs["tokens"])
    role, settings = job.spec.reference, job.spec.key.evaluation
    folder = job.output.parent
    kept: dict[int, Path] = {}
    if role is None:
        student = job.inputs["student"].parent
        source = _student(student, runtime)
        distilled = read_json(job.inputs["student"])
        kept = kept_students(student, distilled, settings.at_steps)
        # An evaluation that goes elsewhere is a trial, and no fact about the student.
        own = folder.resolve() == (student.parent / "evaluation").resolve()
    else:
        source = runtime.reference(role)
    tokenizer, teacher = load_tokenizer(source), None
    if role in runtime.references and vocabulary_sha256(tokenizer) != tokens.manifest["vocabulary_sha256"]:
        raise UserError(
            f"the tokenizer of references.{role} {source.model} is not that of the token set, and numbers per token "
            "compare only between models of one tokenizer; choose a model with the teacher's, or remove it"
        )
    if role != "teacher":
        teacher = read_likeliest(job.inputs["teacher"], tokens.questions_sha256)
    judge = Judge(tokens.task, settings, teacher)
    with TemporaryDirectory() as beside:
        shortened = tokens.manifest["spec"]["student_reasoning"] != "full" and role != "teacher"
        questions = test_questions(tokens, runtime.teacher, shortened)
        held_out = None
        if kept or job.spec.key.validation:
            held_out = validation_questions(tokens, runtime.teacher, shortened, runtime.data, Path(beside))
        for asked in (questions, held_out) if held_out else (questions,):
            _check(role or "student", source, tokenizer, asked, judge)
        right = answers(tokens.input_ids["train"], tokens.segments["train"])
        require_end_after_answer(role or "student", source.model, load_ends(source, tokenizer), right)
        job.output.unlink(missing_ok=True)  # what it vouches for is about to change
        folder.mkdir(parents=True, exist_ok=True)
        if role is None and own:
            # Without the numbers of an earlier one; and before the work, should the folder not be writable.
            write_card(student, distilled, runtime.sources)
        with cost_record(folder / "cost.json", lambda: peak_memory_mib(device)):
            placed = _placed(source, device, judge)
            lines, scores = judge.judge(placed, tokenizer, questions)
            at_steps: dict[int, Judgement] = {}
            if job.spec.key.validation and held_out:  # before any step
                at_steps[0] = judge.judge(placed, tokenizer, held_out)
            for step, then in kept.items():
                assert held_out is not None, "they are asked of what was kept"
                del placed  # one at a time
                placed = resident(load_for_evaluation(_student(then, runtime), device))
                at_steps[step] = judge.judge(placed, tokenizer, held_out)
                said = in_words(means(at_steps[step].lines, judge.metrics), judge.metrics)
                log.info("step %d, on validation: %s", step, said)
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    found = means(lines, judge.metrics)
    seconds = seconds_at(student / "metrics.jsonl", list(kept)) if kept else {0: 0.0}
    manifest: dict[str, Any] = {
        "stage": "evaluate",
        "spec": job.spec.model_dump(),
        "model": _named(source) if role else source.model,
        **found,
        "n": len(lines),
        "questions_sha256": tokens.questions_sha256,
        "samples_sha256": sha256_file(folder / "samples.jsonl"),
        **write_steps(folder, at_steps, judge.metrics, seconds),
    }
    if role == "teacher":
        of_validation = {"validation": at_steps[0].scores} if at_steps else {}
        manifest["likeliest_sha256"] = write_likeliest(folder, {"test": scores} | of_validation)
    if role is None:
        if read_json(job.inputs["student"]) != distilled:
            raise UserError(f"{student} was trained anew while it was evaluated; evaluate it again")
        if own:
            if judge.generates:  # what `generate` takes for the longest answer, whoever calls it
                generation = student / "generation_config.json"
                write_json(generation, read_json(generation) | {"max_new_tokens": settings.max_new_tokens})
            write_card(student, distilled, runtime.sources, manifest)
    write_json(job.output, manifest)
    log.info("%s, n %d", in_words(found, judge.metrics), manifest["n"])
    if role == "teacher" and judge.generates and (fault := judge.task.hopeless(lines, folder / "samples.jsonl")):
        log.warning("warning: %s", fault)


def _placed(source: ModelSettings, device: torch.device, judge: Judge) -> Placed:
    """A model as it is judged; a teacher that writes nothing may be streamed."""
    if isinstance(source, Teacher) and source.placement == "streamed":
        if not judge.generates:
            return place(source, device, head=True)
        log.warning(
            "warning: the teacher writes answers, for which it is in memory as a whole, although teacher.placement is "
            "streamed; evaluation.teacher: likelihood would stream it here, too"
        )
    return resident(load_for_evaluation(source, device))


def _student(folder: Path, runtime: Runtime) -> ModelSettings:
    """A trained student, whose code is that of the model it was."""
    return ModelSettings(model=str(folder), trust_remote_code=runtime.student.trust_remote_code)


def _check(role: str, source: ModelSettings, tokenizer: Any, questions: Questions, judge: Judge) -> None:
    """Raise `UserError` unless a model can read all questions with their gold answers, and with those it writes."""
    if judge.generates:
        prompts = read_prompts(questions.folder)
        check_prompts(tokenizer, prompts, {source.model: source}, judge.settings.max_new_tokens)
    require_room(role, source.model, load_model_config(source), questions)


def _named(source: ModelSettings) -> str:
    kept = source.keep_layers if isinstance(source, Student) else None
    return display_name(source.model) + layers_named(kept)
