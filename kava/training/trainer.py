"""The Hugging Face Trainer with a step of our own: micro-batches that add up, and replay where memory runs out."""

import gc
import json
import logging
import math
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback

from kava.device import device_memory_mib
from kava.errors import UserError
from kava.text import first_line
from kava.training.checkpoints import AtomicCheckpoints
from kava.training.metrics_file import MetricsFile, status_line
from kava.training.micro_batches import MicroBatches
from kava.training.model import PARTS
from kava.training.optimizer import make_optimizer, parameter_groups
from kava.training.termination import StopOnSignal
from kava.training.watch import late_step, warnings_at

log = logging.getLogger("kava")

# Beside the Trainer's own files of a checkpoint: what was summed since the last line of `metrics.jsonl`, and how large
# micro-batches are by now.
PROGRESS = "progress.json"


class KavaTrainer(AtomicCheckpoints):
    """Trainer whose data are the numbers of its optimizer steps; what a step reads is in `micro_batches`.

    The Trainer's own accumulation is not used: a step that runs out of memory has to be done again from its first
    example, and losses are means over a whole step.

    Parameters
    ----------
    model
        A `DistillationModel`.
    optimization
        Settings of the phase, as JSON values.
    metrics
        Where logged steps go.
    arm
        Name of the arm, for status lines.
    micro_batches
        What each optimizer step reads.
    **options
        Of `transformers.Trainer`.

    Attributes
    ----------
    out_of_memory
        Steps that were done again, each with the number of examples per forward from then on.
    late
        Step at which a slow alignment is judged, see `late_step`.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: Any,
        optimization: dict[str, Any],
        metrics: MetricsFile,
        arm: str,
        micro_batches: MicroBatches,
        **options: Any,
    ) -> None:
        steps, log_every = optimization["steps"], optimization["log_every"]
        self._signals = StopOnSignal()
        super().__init__(model=model, train_dataset=range(steps), callbacks=[self._signals], **options)
        # Hardly a weight is used twice in a forward: its bf16 copy need not outlive its layer, let alone all layers.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self.optimization, self.metrics, self.arm = optimization, metrics, arm
        self.late = late_step(model.compared_steps(steps), steps, log_every)
        self.out_of_memory: list[dict[str, int]] = []
        self.seconds_before = 0.0
        self.started = self._logged = time.monotonic()
        self._micro_batches = micro_batches
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._bar = tqdm(
            total=steps,
            unit="step",
            desc=arm,
            disable=None if self.is_world_process_zero() else True,
            dynamic_ncols=True,
            leave=False,
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train, and leave no thread behind however it ends.

        Raises
        ------
        Terminated, Interrupted
            SIGTERM or Ctrl-C came; a checkpoint of the step that was going on then is saved.
        """
        try:
            with self._signals:
                result = super().train(*arguments, **options)
        except RuntimeError as error:
            # Optimizer states come with the first step, after its gradients; smaller batches would not help.
            if not should_reduce_batch_size(error):
                raise
            raise self._no_memory("between forwards", error) from error
        finally:
            self._micro_batches.close()
            self._bar.close()
        if self._signals.asked and self.state.global_step < self.state.max_steps:
            raise self._signals.stopped(self.state.global_step, self.arm)
        return result

    def get_train_dataloader(self) -> DataLoader:
        """Numbers of the steps; in every process the same, since it takes its share of each step."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_only)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The number of the next step."""
        del num_batches, device
        return [next(epoch_iterator)], None

    def floating_point_ops(self, _inputs: Any) -> int:
        """Not counted: the Trainer sees the numbers of steps, and no input."""
        return 0

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one optimizer step; if memory runs out, all of them anew from smaller micro-batches."""
        del num_items_in_batch
        step: int = inputs
        model.train()
        self.model.progress = step / self.state.max_steps
        while True:
            try:
                sums = self._accumulate(model, step)
                break
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._check_can_shrink(error)
            # Not in the handler: its exception would keep the tensors of every frame alive.
            self._shrink(model, step)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] += 1
        return sums["loss"]

    def _accumulate(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        """Gradients of a step's micro-batches; returns the losses of the step."""
        sums: dict[str, Tensor] = {}
        for index, (batch, shares) in enumerate(self._micro_batches.of_step(step)):
            last = index == self._micro_batches.per_step - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    output = model(shares=shares, **batch)
                # Gradients of several processes are averaged, and their losses are shares of one sum.
                self.accelerator.backward(output["loss"] * self.args.world_size)
            for name in ("loss", *PARTS):
                if name in output:
                    sums[name] = sums.get(name, torch.zeros_like(output[name])) + output[name].detach()
        if self.args.world_size > 1:
            together = self.accelerator.reduce(torch.stack(list(sums.values())), "sum")
            sums = dict(zip(sums, together.unbind(), strict=True))
        return sums

    def _check_can_shrink(self, error: RuntimeError) -> None:
        size, alone = self._micro_batches.size, self.args.world_size == 1
        if size == 1 or not alone:
            what = "one example" if size == 1 else f"{size} examples in one of several processes"
            raise self._no_memory(f"with {what} per forward", error) from error

    def _no_memory(self, when: str, error: RuntimeError) -> UserError:
        return UserError(
            f"memory ran out at step {self.state.global_step + 1} of {self.arm} {when} ({first_line(error)}); "
            "`kava plan` tells what takes how much, and which settings would mend it, such as "
            "distill.gradient_checkpointing: true, an 8-bit optimizer, or a smaller batch_size or max_length (what was "
            "stored and pretrained is kept)"
        )

    def _shrink(self, model: nn.Module, step: int) -> None:
        """Halve the examples per forward and forget the step's gradients."""
        size = self._micro_batches.size
        # The largest half that still divides what a step reads.
        smaller = next(half for half in range(size // 2, 0, -1) if size % half == 0)
        log.warning(
            f"out of memory at step {step + 1}: examples per forward {size} → {smaller}; the step's "
            f"{self._micro_batches.examples_per_step} examples are done again from the first"
        )
        self.out_of_memory.append({"step": step + 1, "batch_size": smaller})
        self._micro_batches.resize(smaller)
        model.zero_grad()
        gc.collect()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace the Trainer's averages by ours, per logged step, and write them to `metrics.jsonl`."""
        if "loss" in logs and self._sums:
            means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
            self._sums, self._counts = {}, Counter()
            if not math.isfinite(means["loss"]):
                raise UserError(
                    f"the loss of {self.arm} is {means['loss']} at step {self.state.global_step}; lower the learning "
                    "rates or kv_weight and run again (what was stored and pretrained is kept)"
                )
            rates: dict[str, float | None] = {"student_lr": None, "projector_lr": None}
            for group in self.create_optimizer().param_groups:
                rates[group["rate"]] = group["lr"]
            now = time.monotonic()
            record = {
                "step": self.state.global_step,
                "loss": means["loss"],
                **{name: means.get(name) for name in PARTS},
                **rates,
                "data_wait": self._micro_batches.take_waited() / (now - self._logged),
                "seconds": self.seconds_before + now - self.started,
                "device_memory_mib": device_memory_mib(self.args.device),
            }
            self._logged = now
            if self.is_world_process_zero():
                self._tell(record)
            logs = {name: value for name, value in record.items() if value is not None}
        super().log(logs, start_time)

    def _tell(self, record: dict[str, Any]) -> None:
        self.metrics.append(record)
        with self._bar.external_write_mode():
            log.info(status_line(record, self.optimization["steps"], self.arm))
            for sentence in warnings_at(record, self.late):
                log.warning("warning: %s", sentence)
        self._bar.update(record["step"] - self._bar.n)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(model or self.model, self.optimization)
            self.optimizer = make_optimizer(self.optimization["optimizer"], groups)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        progress = {
            "sums": {name: float(value) for name, value in self._sums.items()},
            "counts": self._counts,
            "batch_size": self._micro_batches.size,
            "out_of_memory": self.out_of_memory,
        }
        (Path(str(output_dir)) / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        progress = json.loads((Path(resume_from_checkpoint) / PROGRESS).read_text(encoding="utf-8"))
        self._sums = {name: torch.tensor(value, device=self.args.device) for name, value in progress["sums"].items()}
        self._counts = Counter(progress["counts"])
        self.out_of_memory = progress["out_of_memory"]
        self._micro_batches.resize(progress["batch_size"])


def _only(items: list[int]) -> int:
    return items[0]
