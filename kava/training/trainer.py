"""The Hugging Face Trainer, with our optimizer groups, atomic checkpoints and `metrics.jsonl`."""

import json
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from kava.errors import UserError
from kava.files import write_atomic
from kava.training.batches import Batch, reader_onto
from kava.training.model import PARTS
from kava.training.prefetch import Prefetch, Window
from kava.training.watch import late_step, phase, warnings_at

log = logging.getLogger("kava")

LABELS = {"cos_sim": "cos", "cos_sim_centered": "centred"}


class MetricsFile:
    """`metrics.jsonl`: one object per logged step, none twice after a resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume_at(self, step: int) -> float:
        """Drop lines after a step; returns the seconds spent up to the last line kept."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        return kept[-1]["seconds"] if kept else 0.0

    def read(self) -> list[dict[str, Any]]:
        """All lines, but for a last one that a kill has torn."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class KavaTrainer(Trainer):
    """Trainer over a fixed data order.

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
    read
        Items of the data order → batch; called in a background thread.
    **options
        Of `transformers.Trainer`; `train_dataset` is the data order, a list with an item per example.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: Any,
        optimization: dict[str, Any],
        metrics: MetricsFile,
        arm: str,
        read: Callable[[Any], Batch],
        **options: Any,
    ) -> None:
        # The Trainer's data loader deals in examples alone, so that what it skips on resume is never read.
        super().__init__(model=model, data_collator=list, **options)
        # The loss of a micro-batch is a mean; the Trainer divides it by the accumulation.
        self.loss_is_scaled_for_ga = False
        self.optimization, self.metrics, self.arm = optimization, metrics, arm
        self.late = late_step(
            model.compared_steps(optimization["steps"]), optimization["steps"], optimization["log_every"]
        )
        self.seconds_before = 0.0
        self.started = self._logged = time.monotonic()
        self._read = reader_onto(self.args.device, read)
        self._batches: Prefetch[Batch] | None = None
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._staging: Path | None = None
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train, and leave no thread behind however it ends."""
        try:
            return super().train(*arguments, **options)
        finally:
            if self._batches:
                self._batches.close()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of one optimizer step, fetched in turn; as a list all of them would lie on the device."""
        del device
        if self._batches is None or self._batches.items is not epoch_iterator:
            self._batches = Prefetch(self._read, epoch_iterator)
        return Window(self._batches, num_batches), None

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        del num_items_in_batch
        self.model.progress = self.state.global_step / self.state.max_steps
        output = model(**inputs)
        for name in ("loss", *PARTS):
            if name in output:
                self._sums[name] = self._sums.get(name, torch.zeros_like(output[name])) + output[name].detach()
                self._counts[name] += 1
        return (output["loss"], output) if return_outputs else output["loss"]

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
            assert self._batches
            now = time.monotonic()
            record = {
                "step": self.state.global_step,
                "loss": means["loss"],
                **{name: means.get(name) for name in PARTS},
                **rates,
                "data_wait": self._batches.waited / (now - self._logged),
                "seconds": self.seconds_before + now - self.started,
            }
            self._batches.waited, self._logged = 0.0, now
            self.metrics.append(record)
            log.info(status_line(record, self.optimization["steps"], self.arm))
            for sentence in warnings_at(record, self.late):
                log.warning("warning: %s", sentence)
            logs = {name: value for name, value in record.items() if value is not None}
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with one learning rate for the student and one for all projections; norms and biases do not decay."""
        if self.optimizer is None:
            settings, groups = self.optimization, []
            for name, module in (model or self.model).named_children():
                trained = {path: p for path, p in module.named_parameters() if p.requires_grad}
                for decays in (True, False):
                    # A bias per layer and head has three dimensions, and is a bias all the same.
                    chosen = [
                        p for path, p in trained.items() if (p.dim() >= 2 and not path.endswith("bias")) == decays
                    ]
                    if chosen:
                        decay = settings["weight_decay"] if decays else 0.0
                        rate = "student_lr" if name == "student" else "projector_lr"
                        groups.append({"params": chosen, "rate": rate, "lr": settings[rate], "weight_decay": decay})
            self.optimizer = make_optimizer(settings["optimizer"], groups)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save what is trained; the Trainer's own way trips over tied weights inside a wrapper."""
        del state_dict
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_tensors(self.model), folder / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        parameters = dict((model or self.model).named_parameters())
        assert saved.keys() == {name for name, p in parameters.items() if p.requires_grad}, "foreign checkpoint"
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name].copy_(tensor)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside and rename it, so that a kill leaves a whole one or none."""
        run_folder = Path(str(self.args.output_dir))
        self._staging = run_folder / "staged.partial"
        shutil.rmtree(self._staging, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            name = f"checkpoint-{self.state.global_step}"
            shutil.rmtree(run_folder / name, ignore_errors=True)
            (self._staging / name).rename(run_folder / name)
        finally:
            self._staging = None
        rotate_checkpoints(output_dir=str(run_folder), save_total_limit=self.args.save_total_limit)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters with a gradient; tied ones appear once."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """`adamw`, or bitsandbytes' with 8-bit states, on the device or paged."""
    if kind == "adamw":
        return torch.optim.AdamW(groups)
    import bitsandbytes

    return {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}[kind](
        groups
    )


def training_arguments(
    settings: dict[str, Any], folder: Path, seed: int, device: torch.device, tracker: str
) -> TrainingArguments:
    """The Trainer's arguments for one phase; checkpoints go to `folder`."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings["accumulation"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        warmup_steps=round(settings["warmup_ratio"] * settings["steps"]),
        lr_scheduler_type="cosine",
        logging_steps=settings["log_every"],
        save_steps=settings["save_every"],
        save_total_limit=settings["keep_checkpoints"],
        seed=seed,
        data_seed=seed,
        bf16=settings["precision"] == "bfloat16",
        use_cpu=device.type == "cpu",
        report_to=tracker,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,  # it holds no tensors
    )
    # With several GPUs in sight the Trainer would wrap the model in DataParallel and multiply the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def last_checkpoint(folder: Path) -> str | None:
    """Newest whole checkpoint of a phase."""
    shutil.rmtree(folder / "staged.partial", ignore_errors=True)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def status_line(record: dict[str, Any], steps: int, arm: str) -> str:
    """`step 100/800 arm=flat loss=… ce=… kv=… cos=… centred=… phase=…`."""
    parts = [f"step {record['step']}/{steps} arm={arm} loss={record['loss']:.4f}"]
    for name in PARTS:
        if record[name] is not None:
            parts.append(f"{LABELS.get(name, name)}={record[name]:.4f}")
    if record["cos_sim_centered"] is not None:
        parts.append(f"phase={phase(record['cos_sim_centered'])}")
    return " ".join(parts)
