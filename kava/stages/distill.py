"""Distil the student of one arm: cross entropy, and its KV drawn to the projected teacher KV.

    kava distill --preset demo --arm structured --seed 42

Loads the student and the projector, reads the teacher's KV from the store, and writes
results/<experiment>/<arm>/seed-<n>/student/: a model that `AutoModelForCausalLM.from_pretrained` loads, its tokenizer
and card, projector/, metrics.jsonl, manifest.json.
"""

import argparse
import sys
from typing import Any

from kava.config.jobs import Job, Plan, Runtime
from kava.stages.common import stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    def select(plan: Plan, arguments: argparse.Namespace) -> Job:
        return plan.distill(*arm_and_seed(plan, arguments))

    return stage_main("distill", __doc__, argv, select, lambda _: run, ARM_OPTIONS)


def run(job: Job, runtime: Runtime) -> None:
    import torch

    from kava.card import write_card
    from kava.data.task import read_prompt
    from kava.files import read_json
    from kava.plan.check import check_fits
    from kava.plan.positions import check_positions
    from kava.training.export import export
    from kava.training.finish import finish
    from kava.training.lora import merge_lora
    from kava.training.phase import run_phase
    from kava.training.processes import is_main_process

    if is_main_process():
        check_fits(job, runtime)
        check_positions(job, runtime)
        job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder = job.output.parent
    tokens, prompt = read_json(job.inputs["tokens"]), read_prompt(job.inputs["tokens"].parent / "task")
    model, tokenizer, manifest = run_phase(job, runtime)
    if not is_main_process():
        return
    files = ["model.safetensors", "config.json"]
    if model.projector is not None:
        model.projector.save(folder / "projector")
        files.append("projector/projector.safetensors")
    manifest |= {"prompt": prompt.to_dict()}
    stop_at(model.student, tokens["end_token_id"])
    if job.spec["lora"]:
        merge_lora(model.student)
    student = model.student.to(getattr(torch, job.spec["export_dtype"]))
    export(student, tokenizer, prompt, tokens["spec"], folder)
    write_card(folder, manifest, runtime.sources)
    finish(job.output, manifest, files, model)


def stop_at(student: Any, end_token_id: int) -> None:
    """Make `generate` stop at the end token that was trained: an instruct teacher's is not its base student's own."""
    own = student.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own] if own is not None else []
    if end_token_id not in known:
        student.generation_config.eos_token_id = [*known, end_token_id]


if __name__ == "__main__":
    sys.exit(main())
