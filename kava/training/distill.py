"""Distil the student of one arm: train, export, write the card and the manifest."""

import logging
from pathlib import Path
from typing import Any

import torch

from kava.card import write_card
from kava.config.job import Job, Runtime
from kava.config.specs import DistillSpec
from kava.data.positions import check_positions
from kava.data.task import read_prompt
from kava.files import read_json
from kava.training.at_steps import AtSteps, on_host
from kava.training.export import export
from kava.training.finish import finish
from kava.training.lora import merge_lora
from kava.training.phase import run_phase
from kava.training.processes import is_main_process

log = logging.getLogger("kava")


def run(job: Job[DistillSpec], runtime: Runtime) -> None:
    if is_main_process():
        check_positions(job, runtime)
        job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder = job.output.parent
    tokens, prompt = read_json(job.inputs["tokens"]), read_prompt(job.inputs["tokens"].parent / "task")

    def leave(student: Any, tokenizer: Any, folder: Path) -> None:
        """Export a trained student, which becomes a plain model in the dtype of its files."""
        stop_at(student, tokens["end_token_id"])
        if job.spec.lora:
            merge_lora(student)
        export(student.to(getattr(torch, job.spec.export_dtype)), tokenizer, prompt, tokens["spec"], folder)

    steps = job.spec.at_steps or []

    def at_steps(student: Any, tokenizer: Any) -> AtSteps:
        return AtSteps(steps, folder / "at_steps", lambda to: leave(on_host(student), tokenizer, to))

    model, tokenizer, manifest = run_phase(job, runtime, make_at_steps=at_steps)
    if not is_main_process():
        return
    files = ["model.safetensors", "config.json"]
    if model.projector is not None:
        model.projector.save(folder / "projector")
        files.append("projector/projector.safetensors")
    manifest |= {"prompt": prompt.to_dict()}
    if steps:
        manifest |= {"at_steps": steps}
        files += [f"at_steps/{step}/model.safetensors" for step in steps]
    leave(model.student, tokenizer, folder)
    write_card(folder, manifest, runtime.sources)
    finish(job.output, manifest, files, model)


def stop_at(student: Any, end_token_id: int) -> None:
    """Make `generate` stop at the end token that was trained: an instruct teacher's is not its base student's own."""
    own = student.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own] if own is not None else []
    if end_token_id not in known:
        student.generation_config.eos_token_id = [*known, end_token_id]
