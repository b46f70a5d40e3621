"""The loop of a training phase: optimizer steps, from the last checkpoint if there is one, to the end or a signal."""

import gc
import logging
from collections.abc import Mapping
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from kava.config.training import Distill, Pretrain
from kava.errors import UserError
from kava.files import sha256_json
from kava.text import first_line
from kava.training.at_steps import AtSteps
from kava.training.batches import Batch, Batches, reader_onto
from kava.training.checkpoints import Checkpoints, Progress
from kava.training.journal import Journal, MetricsFile, TrainingRun
from kava.training.micro_batches import MicroBatches, Part
from kava.training.model import WHOLE, DistillationModel
from kava.training.optimizer import cosine_schedule, make_optimizer, parameter_groups
from kava.training.order import data_order, longest_first
from kava.training.termination import StopOnSignal
from kava.training.watch import first_warnings, late_step

log = logging.getLogger("kava")


def train(
    model: DistillationModel,
    batches: Batches,
    settings: Pretrain | Distill,
    run: TrainingRun,
    at_steps: AtSteps | None = None,
) -> dict[str, Any]:
    """Train a model and return the facts of the run for its manifest.

    Parameters
    ----------
    model
        Student and projector.
    batches
        The training split.
    settings, run
        Of the phase.
    at_steps
        What is written of the student while it is trained; None for nothing.

    Raises
    ------
    Terminated, Interrupted
        SIGTERM or Ctrl-C came; a checkpoint of the step that was going on then is saved.
    UserError
        Memory does not suffice for one example, or the loss is not finite.
    """
    metrics = MetricsFile(run.folder / "metrics.jsonl")
    per_step = settings.batch_size * settings.accumulation
    order = data_order(run.seed, len(batches), settings.steps * per_step)
    if settings.accumulation > 1:
        order = longest_first(order, [len(ids) for ids in batches.ids], per_step)
    late = late_step(model.compared_steps(settings.steps), settings.steps, settings.log_every)
    out_of_memory: list[dict[str, int]] = []
    if settings.steps:
        out_of_memory = Loop(model, batches, settings, run, order, late, at_steps).run().out_of_memory
    else:
        metrics.resume_at(0)
    return {
        "optimizer_steps": settings.steps,
        "train_tokens": sum(len(batches.ids[example]) for example in order),
        "data_order_sha256": sha256_json(order),
        "projector_parameters": model.projector.parameter_count if model.projector else None,
        "warnings": first_warnings(metrics.read(), late),
        "out_of_memory": out_of_memory,
    }


class Loop:
    """Steps over the examples of a run in their order; losses are means over a whole step.

    Accelerate's own accumulation is not used: a step that runs out of memory has to be done again from its first
    example.
    """

    def __init__(
        self,
        model: DistillationModel,
        batches: Batches,
        settings: Pretrain | Distill,
        run: TrainingRun,
        order: list[int],
        late: int,
        at_steps: AtSteps | None = None,
    ) -> None:
        self.at_steps = at_steps
        self.model, self.settings, self.arm = model, settings, run.arm
        set_seed(run.seed)
        # Runs have had a data loader, which drew a number first: dropout masks are to stay what they were.
        torch.empty((), dtype=torch.int64).random_()
        self.accelerator = _accelerator(model, run.device)
        self.wrapped = self.accelerator.prepare_model(model)
        self.optimizer = make_optimizer(settings.optimizer, parameter_groups(model, settings))
        self.schedule = cosine_schedule(self.optimizer, settings.warmup_ratio, settings.steps)

        def read(part: Part) -> Batch:
            """Examples with the teacher's side that their step will want."""
            return batches.collate(part.examples, model.wanted(part.step / settings.steps))

        per_step, place = settings.batch_size * settings.accumulation, self.accelerator
        self.micro_batches = MicroBatches(
            reader_onto(run.device, read), batches.counts, order, per_step, settings.batch_size, place.process_index,
            place.num_processes,
        )  # fmt: skip
        self.progress = Progress(settings.batch_size)
        self.journal = Journal(run, settings, self.accelerator.is_main_process, late)
        folder = run.folder / "checkpoints" / run.fingerprint
        self.checkpoints = Checkpoints(folder, settings.keep_checkpoints, self.accelerator)

    def run(self) -> Progress:
        """All steps that are left, see `train`."""
        with StopOnSignal() as signals, closing(self.micro_batches), self.journal:
            try:
                self._steps(signals)
            except RuntimeError as error:
                # Optimizer states come with the first step, after its gradients; smaller batches would not help.
                if not should_reduce_batch_size(error):
                    raise
                raise self._no_memory("between forwards", error) from error
        return self.progress

    def _steps(self, signals: StopOnSignal) -> None:
        settings, states = self.settings, (self.model, self.optimizer, self.schedule)
        if saved := self.checkpoints.load_last(*states):
            self.progress = saved
            self.micro_batches.resize(saved.batch_size)
        self.journal.start(self.progress.step)
        if self.at_steps and self.accelerator.is_main_process:
            self.at_steps.begin(self.progress.step)
        self.accelerator.wait_for_everyone()
        while self.progress.step < settings.steps:
            self.progress.add(self.gradients(self.progress.step))
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            self.wrapped.zero_grad()
            self.progress.step += 1
            step, last = self.progress.step, self.progress.step == settings.steps
            asked = signals.agreed(self.accelerator)
            if step % settings.log_every == 0:
                means, waited = self.progress.take_means(), self.micro_batches.take_waited()
                self.journal.line(step, means, self.optimizer.param_groups, waited)
            if self.at_steps and step in self.at_steps.steps and self.accelerator.is_main_process:
                with self.journal.apart():
                    self.at_steps.write(step)
            if step % settings.save_every == 0 or last or asked:
                self.checkpoints.save(self.progress, *states)
            if asked and not last:
                raise signals.stopped(step, self.arm)

    def gradients(self, step: int) -> dict[str, Tensor]:
        """Gradients of one optimizer step, and its losses; if memory runs out, all anew from smaller micro-batches."""
        self.model.progress = step / self.settings.steps
        while True:
            try:
                return self._accumulated(step)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._require_smaller(error)
            # Not in the handler: its exception would keep the tensors of every frame alive.
            self._shrink(step)

    def _accumulated(self, step: int) -> dict[str, Tensor]:
        self.wrapped.train()
        sums: dict[str, Tensor] = {}
        processes = self.accelerator.num_processes
        for index, (batch, shares) in enumerate(self.micro_batches.of_step(step)):
            last = index == self.micro_batches.per_step - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                losses = backward(self.wrapped, batch, self.settings.precision, shares, processes)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach()
        if processes > 1:
            together = self.accelerator.reduce(torch.stack(list(sums.values())), "sum")
            sums = dict(zip(sums, together.unbind(), strict=True))
        return sums

    def _require_smaller(self, error: RuntimeError) -> None:
        size, alone = self.micro_batches.size, self.accelerator.num_processes == 1
        if size == 1 or not alone:
            what = "one example" if size == 1 else f"{size} examples in one of several processes"
            raise self._no_memory(f"with {what} per forward", error) from error

    def _no_memory(self, when: str, error: RuntimeError) -> UserError:
        return UserError(
            f"memory ran out at step {self.progress.step + 1} of {self.arm} {when} ({first_line(error)}); "
            "`kava plan` tells what takes how much, and which settings would fix it, such as "
            "distill.gradient_checkpointing: true, an 8-bit optimizer, or a smaller batch_size or max_length (what was "
            "stored and pretrained is kept)"
        )

    def _shrink(self, step: int) -> None:
        """Halve the examples per forward and forget the step's gradients."""
        size = self.micro_batches.size
        # The largest half that still divides what a step reads.
        smaller = next(half for half in range(size // 2, 0, -1) if size % half == 0)
        log.warning(
            f"out of memory at step {step + 1}: examples per forward {size} → {smaller}; the step's "
            f"{self.micro_batches.examples_per_step} examples are done again from the first"
        )
        self.progress.out_of_memory.append({"step": step + 1, "batch_size": smaller})
        self.progress.batch_size = smaller
        self.micro_batches.resize(smaller)
        self.wrapped.zero_grad()
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def backward(
    model: nn.Module, batch: Mapping[str, Any], precision: str, shares: Mapping[str, float] = WHOLE, processes: int = 1
) -> dict[str, Tensor]:
    """Losses of a micro-batch, whose gradients have been added to the parameters'.

    Parameters
    ----------
    model
        A `DistillationModel`, or one that is wrapped for several processes.
    batch, shares
        A `Batch`, and which share of its optimizer step it is.
    precision
        `float32`, or `bfloat16` for autocast.
    processes
        How many share the step: their gradients are averaged, while their losses are shares of one sum.
    """
    # Hardly a weight is used twice in a forward: its bf16 copy need not outlive its layer, let alone all layers.
    low = precision == "bfloat16"
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=low, cache_enabled=False):
        losses: dict[str, Tensor] = model(shares=shares, **batch)
    (losses["loss"] * processes).backward()
    return losses


def _accelerator(model: DistillationModel, device: torch.device) -> Accelerator:
    """What makes the processes of a run known to each other, and wraps a model for them."""
    # A loss whose time is over, has not come, or compares keys alone leaves projections without a gradient.
    unused = any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("student."))
    # One process may train several times, and on another device.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # `backward` does it
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
