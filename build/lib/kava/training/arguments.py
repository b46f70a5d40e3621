"""The Trainer's arguments."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from kava.training.trackers import PROJECT


def training_arguments(
    settings: dict[str, Any],
    folder: Path,
    seed: int,
    device: torch.device,
    tracker: str,
    run: str,
    unused: bool,
) -> TrainingArguments:
    """The Trainer's arguments for one phase.

    Parameters
    ----------
    settings
        Of the phase, as JSON values.
    folder
        Where checkpoints go.
    seed, device, tracker
        Of the random numbers, where to run, and where to log.
    run
        Name of the run in a tracker.
    unused
        Whether parameters that are trained have no gradient in some steps, of which DDP must know.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=1,  # a step's number
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
        run_name=run,
        project=PROJECT,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,  # it holds no tensors
        ddp_find_unused_parameters=unused,
    )
    # With several GPUs in sight the Trainer would wrap the model in DataParallel and multiply the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
