"""Set up and run a training phase: pretraining the projector, or distilling the student."""

import logging
from pathlib import Path
from typing import Any

import torch

from kava.align.projector import Projector
from kava.cache.capture import geometry
from kava.cache.reader import StoreReader
from kava.data.tokens import TokenSet, vocabulary_sha256
from kava.errors import UserError
from kava.files import sha256_json
from kava.metrics import warnings_for
from kava.models import choose_device, load_student, load_tokenizer
from kava.training.batches import Batches
from kava.training.loop import measure_alignment, run_fingerprint, train
from kava.training.model import DistillationModel

log = logging.getLogger("kava")


def run_phase(
    stage: str, spec: dict[str, Any], inputs: dict[str, Path], folder: Path, device_name: str, tracker: str
) -> tuple[DistillationModel, Any, dict[str, Any]]:
    """Train and measure.

    Parameters
    ----------
    stage
        `pretrain` (the student is frozen) or `distill`.
    spec, inputs
        Of the job.
    folder
        Of the stage's outputs.
    device_name, tracker
        `auto`, `cpu` or `cuda`; where to log.

    Returns
    -------
    DistillationModel, tokenizer, dict
        The trained model, the student's tokenizer, and the manifest without the hashes of exported files.
    """
    arm, seed, settings = spec["arm"], spec["seed"], spec[stage]
    device = choose_device(device_name)
    tokens = TokenSet(inputs["tokens"])
    tokenizer = load_tokenizer(spec["student"])
    if vocabulary_sha256(tokenizer) != tokens.manifest["vocabulary_sha256"]:
        raise UserError(
            f"the student's tokenizer {spec['student']['model']} is not the one of the token set {inputs['tokens']}; "
            "choose a student with the teacher's tokenizer"
        )
    store = StoreReader(inputs["store"]) if "store" in inputs else None
    student = load_student(spec["student"], device)
    torch.manual_seed(seed)
    projector = _projector(stage, arm, inputs, store, student)
    keys = store.keys_form if store else "pre_rope"
    model = DistillationModel(student, projector, arm, stage == "distill", keys).to(device)
    shuffled = seed if arm["teacher_kv"] == "shuffled" else None
    batches = Batches(tokens, "train", store, shuffled)
    model.calibrate(batches, device, settings["batch_size"], base_student=stage == "pretrain")
    fingerprint = run_fingerprint(spec, inputs)
    facts = train(model, batches, settings, seed, folder, fingerprint, spec["name"], device, tracker)
    alignment = measure_alignment(model, Batches(tokens, "train", store), Batches(tokens, "validation", store))
    warnings = warnings_for(alignment) if alignment else []
    if alignment:
        log.info(" ".join(f"{name}={value:.4f}" for name, value in alignment.items() if name != "per_head"))
    for warning in warnings:
        log.warning("warning: %s", warning)
    manifest = {
        "stage": stage,
        "spec": spec,
        "initial_student_sha256": sha256_json(spec["student"]["identity"]),
        "alignment": alignment,
        "warnings": warnings,
        **facts,
    }
    return model, tokenizer, manifest


def _projector(
    stage: str, arm: dict[str, Any], inputs: dict[str, Path], store: StoreReader | None, student: Any
) -> Projector | None:
    if store is None:
        return None
    if stage == "distill":
        return Projector.load(inputs["projector"].parent)
    projector = Projector(arm["aligner"], store.geometry, geometry(student.config))
    projector.set_teacher_statistics(store.mean, store.std)
    return projector
