"""What to make of a running alignment: a word for how far it is, and warnings."""

import math
from collections.abc import Iterable
from typing import Any

PHASES = ((0.5, "adapting"), (0.7, "learning"), (0.9, "good"), (0.95, "great"))
# DESIGN.md: warn when the magnitude loss passes 1, or the cosine is under 0.5 at step 200.
MAGNITUDE_LIMIT = 1.0
LATE_STEP, LATE_COSINE = 200, 0.5


def alignment_word(cos_sim_centered: float) -> str:
    """Word for a centred cosine: adapting < 0.5, learning < 0.7, good < 0.9, great < 0.95, excellent."""
    return next((word for limit, word in PHASES if cos_sim_centered < limit), "excellent")


def late_step(compared_steps: int, steps: int, log_every: int) -> int:
    """Logged step whose cosine is judged: the first from 200 on, or the last one in a run that compares KV for less.

    Parameters
    ----------
    compared_steps
        Steps in which KV is compared, the first ones of the run.
    steps
        All steps of the run.
    log_every
        Distance of the lines of `metrics.jsonl`; a line tells of the steps since the one before it.

    Returns
    -------
    int
        0 if there is no such step.
    """
    return min(-(-LATE_STEP // log_every), -(-compared_steps // log_every), steps // log_every) * log_every


def warnings_at(record: dict[str, Any], late: int) -> list[str]:
    """Sentences on one line of `metrics.jsonl`; `late` is the run's `late_step`."""
    found, step = [], record["step"]
    magnitude, cosine = record["magnitude"], record["cos_sim_centered"]
    if magnitude is not None and magnitude > MAGNITUDE_LIMIT:
        found.append(
            f"magnitude: the squared difference of log norms is {magnitude:.2f} at step {step}, over "
            f"{MAGNITUDE_LIMIT:g}; norms differ by a factor of {math.exp(magnitude**0.5):.1f}"
        )
    if cosine is not None and step == late and cosine < LATE_COSINE:
        found.append(f"slow alignment: the centred cosine is {cosine:.2f} at step {step}, under {LATE_COSINE:g}")
    return found


def first_warnings(records: Iterable[dict[str, Any]], late: int) -> list[str]:
    """The first warning of each kind in a whole run, whether or not it was interrupted."""
    first: dict[str, str] = {}
    for record in records:
        for sentence in warnings_at(record, late):
            first.setdefault(sentence.split(":")[0], sentence)
    return list(first.values())
