"""The projector of one arm by least squares: one pass over the training examples, then the solution."""

import gc
import logging
import time
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from tqdm import tqdm

from kava.align.base import Solved
from kava.align.least_squares import Moments
from kava.config.training import ClosedForm
from kava.errors import UserError
from kava.files import sha256_json
from kava.models.capture import capture
from kava.text import first_line
from kava.training.batches import Batches, teacher_kv
from kava.training.journal import MetricsFile, TrainingRun
from kava.training.model import DistillationModel

log = logging.getLogger("kava")


def solve(model: DistillationModel, batches: Batches, settings: ClosedForm, run: TrainingRun) -> dict[str, Any]:
    """Fit a projector and return the facts of the run for its manifest.

    The raw output of the aligners is then what the student's KV has beyond its means, or with `center: false` the
    student's KV itself. Nothing is kept of a pass that was cut short: the next run begins anew.

    Parameters
    ----------
    model
        Base student and projector, which has its statistics.
    batches
        The training split, read from its first example on.
    settings, run
        Of the phase.

    Returns
    -------
    dict
        As of `kava.training.loop.train`, and `seconds`.

    Raises
    ------
    UserError
        Memory does not suffice, or the equations have no solution.
    """
    began = time.monotonic()
    model.eval()
    # What an earlier run with steps has logged is not of this one.
    MetricsFile(run.folder / "metrics.jsonl").resume_at(-1)
    examples = list(range(min(settings.examples or len(batches), len(batches))))
    try:
        tokens = _solve(model, batches, settings, examples, run)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise UserError(
            f"memory ran out while the projector of {run.arm} was solved for ({first_line(error)}); lower "
            "pretrain.batch_size, or set pretrain.kind: gradient"
        ) from error
    gc.collect()
    seconds = time.monotonic() - began
    log.info("projector of %s solved for from %d tokens in %.1f s", run.arm, tokens, seconds)
    assert model.projector is not None
    return {
        "optimizer_steps": 0,
        "train_tokens": sum(len(batches.ids[example]) for example in examples),
        "data_order_sha256": sha256_json(examples),
        "projector_parameters": model.projector.parameter_count,
        "warnings": [],
        "out_of_memory": [],
        "seconds": seconds,
    }


@torch.no_grad()
def _solve(
    model: DistillationModel, batches: Batches, settings: ClosedForm, examples: list[int], run: TrainingRun
) -> int:
    """Gather moments, keys and values apart, and solve; returns the number of tokens."""
    projector = model.projector
    assert projector is not None, f"{run.arm} has no projector"
    aligners = [aligner for aligner in projector.aligners if isinstance(aligner, Solved)]
    assert len(aligners) == len(projector.aligners), f"{run.arm}: {projector.settings.kind} has nothing to solve for"
    # Keys may lie hundreds from zero, where float32 is coarse.
    means = [aligner.targets(mean[None]) for aligner, mean in zip(aligners, projector.student_mean, strict=True)]
    moments = [Moments() for _ in aligners]
    count = -(-len(examples) // settings.batch_size)
    read = batches.slice(examples, settings.batch_size)
    for batch in tqdm(read, total=count, unit="batch", desc=run.arm, disable=None, dynamic_ncols=True, leave=False):
        weight = batch["kv_weight"].to(run.device)
        ids, attention_mask = (batch[name].to(run.device) for name in ("input_ids", "attention_mask"))
        student, _ = capture(model.student, ids, attention_mask, model.keys)
        teacher = projector.inputs(teacher_kv(batch, run.device))
        for sums, aligner, x, y, mean in zip(moments, aligners, teacher, student, means, strict=True):
            sums.add(_rows(aligner.features(x), weight), _rows(aligner.targets(y.float()) - mean, weight))
    for sums, aligner, mean in zip(moments, aligners, means, strict=True):
        normal = sums.about_the_means()
        if not projector.center:
            normal = normal._replace(mean_y=normal.mean_y + mean[:, 0, 0])
        aligner.solve(normal, settings)
    projector.leave_output()
    return moments[0].tokens


def _rows(tensor_GBTC: Tensor, weight_BT: Tensor) -> Tensor:
    """Of the tokens that are compared, `[G, N, C]`."""
    return tensor_GBTC[:, weight_BT > 0]
