"""Run one phase of training to its end, from the last checkpoint if there is one."""

import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from kava.files import read_json, sha256_file, sha256_json
from kava.metrics import alignment_metrics
from kava.training.arguments import training_arguments
from kava.training.batches import Batch, Batches, reader_onto
from kava.training.calibrate import CALIBRATION_EXAMPLES
from kava.training.checkpoints import last_checkpoint
from kava.training.metrics_file import MetricsFile
from kava.training.micro_batches import MicroBatches, Part
from kava.training.model import DistillationModel
from kava.training.order import data_order, longest_first
from kava.training.processes import is_main_process, wait_for_others
from kava.training.trackers import prepare_tracker
from kava.training.trainer import KavaTrainer
from kava.training.watch import first_warnings


def train(
    model: DistillationModel,
    batches: Batches,
    settings: dict[str, Any],
    seed: int,
    folder: Path,
    fingerprint: str,
    arm: str,
    device: torch.device,
    tracker: str,
) -> dict[str, Any]:
    """Train a model and return the facts of the run for its manifest.

    Parameters
    ----------
    model
        Student and projector.
    batches
        The training split.
    settings
        Optimization settings, as JSON values.
    seed
        Of the data order and of dropout.
    folder
        Of the stage; checkpoints go to `checkpoints/<fingerprint>/`, logged steps to `metrics.jsonl`.
    fingerprint
        Hash of all that the run depends on, so that a checkpoint of other settings is never continued.
    arm, device, tracker
        Name for status lines, where to run, and where to log.
    """
    metrics = MetricsFile(folder / "metrics.jsonl")
    if settings["steps"] == 0:
        metrics.resume_at(0)
        return _facts(model, batches, settings, [], [], [])
    checkpoints = folder / "checkpoints" / fingerprint
    # A loss whose time is over, has not come, or compares keys alone leaves projections without a gradient.
    unused = any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("student."))
    run = prepare_tracker(tracker, folder)
    # Where there are several processes, this makes them known to each other.
    arguments = training_arguments(settings, checkpoints, seed, device, tracker, run, unused)
    per_step = settings["batch_size"] * settings["accumulation"]
    order = data_order(seed, len(batches), settings["steps"] * per_step)
    if settings["accumulation"] > 1:
        order = longest_first(order, [len(ids) for ids in batches.ids], per_step)
    for other in (folder / "checkpoints").glob("*"):
        if other != checkpoints and is_main_process():
            shutil.rmtree(other)
    checkpoint = last_checkpoint(checkpoints)

    def read(part: Part) -> Batch:
        """Examples with the teacher's side that their step will want."""
        return batches.collate(part.examples, frozenset(model.weights(part.step / settings["steps"])))

    micro_batches = MicroBatches(
        reader_onto(device, read),
        batches.counts,
        order,
        per_step,
        settings["batch_size"],
        arguments.process_index,
        arguments.world_size,
    )
    trainer = KavaTrainer(model, settings, metrics, arm, micro_batches, args=arguments)
    step = read_json(Path(checkpoint) / "trainer_state.json")["global_step"] if checkpoint else 0
    if is_main_process():
        trainer.seconds_before = metrics.resume_at(step)
    wait_for_others()
    trainer.train(resume_from_checkpoint=checkpoint)
    return _facts(model, batches, settings, order, first_warnings(metrics.read(), trainer.late), trainer.out_of_memory)


def _facts(
    model: DistillationModel,
    batches: Batches,
    settings: dict[str, Any],
    order: list[int],
    warnings: list[str],
    out_of_memory: list[dict[str, int]],
) -> dict[str, Any]:
    return {
        "optimizer_steps": settings["steps"],
        "train_tokens": sum(len(batches.ids[example]) for example in order),
        "data_order_sha256": sha256_json(order),
        "projector_parameters": model.projector.parameter_count if model.projector else None,
        "warnings": warnings,
        "out_of_memory": out_of_memory,
    }


def measure_alignment(
    model: DistillationModel, training: Batches, held_out: Batches, batch_size: int
) -> dict[str, Any]:
    """Alignment metrics of a model with a projector."""
    model.eval()
    # The Trainer's optimizer states hang in reference cycles; on a small GPU they would still be there.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return alignment_metrics(
        model.predict,
        training.slice(range(min(CALIBRATION_EXAMPLES, len(training))), batch_size),
        held_out.slice(range(len(held_out)), batch_size),
    )


def run_fingerprint(spec: dict[str, Any], inputs: dict[str, Path]) -> str:
    """Hash of a stage's spec and of the manifests that it reads."""
    return sha256_json([spec, {name: sha256_file(path) for name, path in inputs.items()}])[:16]
