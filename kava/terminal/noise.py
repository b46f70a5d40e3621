"""Sentences of libraries that are said on every run and that nobody can act on."""

import logging
from typing import Final

# Logger → beginning or part of what it says. Warnings beside it are shown.
NOISE: Final = {
    # A kernel from the hub, which KAVA does not use; the product is computed without it.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "lm_eval.api.task": "Custom kwargs can be passed to `--metadata`",
}


def is_said(record: logging.LogRecord) -> bool:
    """Filter of the loggers of `NOISE`."""
    return NOISE[record.name] not in record.getMessage()


def leave_out_noise() -> None:
    """Drop them from now on, in this process."""
    for name in NOISE:
        logging.getLogger(name).addFilter(is_said)
