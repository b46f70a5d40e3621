"""Measure alignment: at the end of a phase, and of a finished student anew after the metrics have changed."""

import gc
import logging
from typing import Any

import torch

from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.config.job import Job, Runtime
from kava.config.specs import MeasureSpec
from kava.data.tokens import TokenSet
from kava.device import use_device
from kava.files import read_json, sha256_file, write_json
from kava.metrics import alignment_metrics
from kava.misalignment import inert_sentence, is_inert, warnings_for
from kava.models.load import load_student
from kava.store.reader import StoreReader
from kava.training.batches import Batches, stored_batches
from kava.training.calibrate import CALIBRATION_EXAMPLES
from kava.training.model import DistillationModel

log = logging.getLogger("kava")


def run(job: Job[MeasureSpec], runtime: Runtime) -> None:
    """Write `alignment.json` beside a student: what `distill` would now find, for the manifest that it names."""
    manifest, folder = job.inputs["student"], job.inputs["student"].parent
    spec = read_json(manifest)["spec"]
    device = use_device(runtime)
    tokens, store = TokenSet(job.inputs["tokens"]), StoreReader(job.inputs["store"], device)
    student = load_student(runtime.student.moved(folder), device)
    projector, arm = Projector.load(folder / "projector"), Arm.model_validate(spec["arm"])
    model = DistillationModel(student, projector, arm, False, store.keys_form)
    training, held_out = (stored_batches(tokens, split, store) for split in ("train", "validation"))
    alignment = measure_alignment(model.to(device), training, held_out, spec["distill"]["batch_size"])
    warnings = judge(alignment, spec["arm"])
    measured = {"alignment": alignment, "measured": {"metrics": job.spec.metrics, "warnings": warnings}}
    write_json(
        job.output, {"stage": "measure", "spec": job.spec.model_dump(), "student": sha256_file(manifest), **measured}
    )


def measure_alignment(
    model: DistillationModel, training: Batches, held_out: Batches, batch_size: int
) -> dict[str, Any]:
    """Alignment metrics of a model with a projector."""
    model.eval()
    # Optimizer states hang in reference cycles; on a small GPU they would still be there.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return alignment_metrics(
        model.predict,
        training.slice(range(min(CALIBRATION_EXAMPLES, len(training))), batch_size),
        held_out.slice(range(len(held_out)), batch_size),
    )


def judge(alignment: dict[str, Any], arm: dict[str, Any] | None = None) -> list[str]:
    """Log alignment metrics, and the sentences on what is wrong with them, which are returned.

    `arm` is that of a distilled student, whose KV loss may have done nothing.
    """
    log.info(" ".join(f"{name}={_shown(alignment[name])}" for name in alignment if name != "per_head"))
    found = warnings_for(alignment)
    if arm and is_inert(arm, alignment):
        found.append(inert_sentence(arm, alignment))
    for sentence in found:
        log.warning("warning: %s", sentence)
    return found


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
