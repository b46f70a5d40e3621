"""What to make of a running alignment: a word for how far it is, and warnings."""

import math
from collections.abc import Iterable
from typing import Any

PHASES = ((0.5, "adapting"), (0.7, "learning"), (0.9, "good"), (0.95, "great"))
MAGNITUDE_LIMIT = 1.0
# By this step the centred cosine of a map that will come to mean something is above the limit.
LATE_STEP, LATE_COSINE = 200, 0.5


def phase(cos_sim_centered: float) -> str:
    """Word for a centred cosine: adapting < 0.5, learning < 0.7, good < 0.9, great < 0.95, excellent."""
    return next((word for limit, word in PHASES if cos_sim_centered < limit), "excellent")


def warnings_at(record: dict[str, Any], log_every: int) -> list[str]:
    """Sentences on one line of `metrics.jsonl`; lines stand `log_every` steps apart."""
    found, step = [], record["step"]
    magnitude, cosine = record.get("magnitude"), record.get("cos_sim_centered")
    if magnitude is not None and magnitude > MAGNITUDE_LIMIT:
        found.append(
            f"magnitude: the squared difference of log norms is {magnitude:.2f} at step {step}, over "
            f"{MAGNITUDE_LIMIT:g}; norms differ by a factor of {math.exp(magnitude**0.5):.1f}"
        )
    if cosine is not None and LATE_STEP <= step < LATE_STEP + log_every and cosine < LATE_COSINE:
        found.append(f"slow alignment: the centred cosine is {cosine:.2f} at step {step}, under {LATE_COSINE:g}")
    return found


def first_warnings(records: Iterable[dict[str, Any]], log_every: int) -> list[str]:
    """The first warning of each kind in a whole run, whether or not it was interrupted."""
    first: dict[str, str] = {}
    for record in records:
        for sentence in warnings_at(record, log_every):
            first.setdefault(sentence.split(":")[0], sentence)
    return list(first.values())
