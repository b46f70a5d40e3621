"""Evaluate one model: its answers to the test questions and their marks, or how likely the right ones are to it."""

import json
import logging

from kava.card import write_card
from kava.config.identity import display_name
from kava.config.job import Job, Runtime
from kava.config.schema import ModelSettings
from kava.config.specs import EvaluateSpec
from kava.data.fit import require_end_after_answer
from kava.data.positions import check_prompts
from kava.data.task import read_prompts
from kava.data.tokens import TokenSet, answers
from kava.device import peak_memory_mib, use_device
from kava.errors import UserError
from kava.evaluation.agreement import read_likeliest, write_likeliest
from kava.evaluation.judge import judge, means
from kava.evaluation.questions import require_room, test_questions
from kava.files import read_json, sha256_file, write_atomic, write_json
from kava.models.load import load_ends, load_for_evaluation, load_model_config, load_tokenizer
from kava.running import cost_record
from kava.tasks import scored

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
    task = tokens.task
    generated = task.harness is not None and settings.generate
    shortened = tokens.manifest["spec"]["student_reasoning"] != "full" and role != "teacher"
    questions = test_questions(tokens, runtime.teacher, shortened)
    tokenizer = load_tokenizer(source)
    if generated:
        prompts = read_prompts(tokens.task_folder)
        check_prompts(tokenizer, prompts, {source.model: source}, settings.max_new_tokens)
    require_room(role or "student", source.model, load_model_config(source), questions)
    right = answers(tokens.input_ids["train"], tokens.segments["train"])
    require_end_after_answer(role or "student", source.model, load_ends(source, tokenizer), right)
    teacher = None if role == "teacher" else read_likeliest(job.inputs["teacher"], tokens.questions_sha256)
    job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder.mkdir(parents=True, exist_ok=True)
    if role is None and own:
        # Without the numbers of an earlier one; and before the work, should the folder not be writable.
        write_card(student, distilled, runtime.sources)
    with cost_record(folder / "cost.json", lambda: peak_memory_mib(device)):
        model = load_for_evaluation(source, device)
        lines, scores = judge(model, tokenizer, questions, task, tokens.task_folder, settings, teacher)
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    metrics = scored(task, settings.generate)
    found = means(lines, metrics)
    manifest = {
        "stage": "evaluate",
        "spec": job.spec.model_dump(),
        "model": display_name(source.model) if role else source.model,
        **found,
        "n": len(lines),
        "questions_sha256": tokens.questions_sha256,
        "samples_sha256": sha256_file(folder / "samples.jsonl"),
    }
    if role == "teacher":
        manifest["likeliest_sha256"] = write_likeliest(folder, {"test": scores})
    if role is None:
        if read_json(job.inputs["student"]) != distilled:
            raise UserError(f"{student} was trained anew while it was evaluated; evaluate it again")
        if own:
            if generated:  # what `generate` takes for the longest answer, whoever calls it
                generation = student / "generation_config.json"
                write_json(generation, read_json(generation) | {"max_new_tokens": settings.max_new_tokens})
            write_card(student, distilled, runtime.sources, manifest)
    write_json(job.output, manifest)
    said = ", ".join(f"{metric.label} {value:.4f}" for metric in metrics if (value := found[metric.name]) is not None)
    log.info("%s, n %d", said, manifest["n"])
    if role == "teacher" and generated and (sentence := tokens.task.hopeless(lines, folder / "samples.jsonl")):
        log.warning("warning: %s", sentence)
