"""What alignment metrics are called in words; needs no torch, so that the report can say the same as the stages.

A grade is of alignment alone: an arm whose grade is low can have the best accuracy of its run.
"""

from typing import Literal

COLLAPSE = (0.9, 0.05)  # a raw cosine above the first with an r2 below the second
# A centred cosine of 0.1 is 1% of the variance, and what a map as drawn reaches by chance is under 5% (r2 of 0.00 to
# 0.04 on the demo); arms there that learn from KV at all, another example's included, end above 0.3 in both.
INERT = (0.1, 0.05)

Grade = Literal["excellent", "good", "pass", "low"]
# Least centred cosine of each grade, best first.
GRADES: tuple[tuple[float, Grade], ...] = ((0.95, "excellent"), (0.90, "good"), (0.80, "pass"))


def grade(cos_sim_centered: float | None) -> Grade | None:
    """Word for a mean centred cosine: excellent from 0.95, good from 0.90, pass from 0.80, else low; None for None."""
    if cos_sim_centered is None:
        return None
    return next((word for limit, word in GRADES if cos_sim_centered >= limit), "low")


def collapsed(cos_sim: float | None, r2: float | None) -> bool:
    """Whether a projection predicts little more than each channel's mean; False where a number is not known."""
    return cos_sim is not None and r2 is not None and cos_sim > COLLAPSE[0] and r2 < COLLAPSE[1]


def inert(cos_sim_centered: float | None, r2: float | None) -> bool:
    """Whether a student's KV follows the projection no more than by chance; False where a number is not known."""
    return cos_sim_centered is not None and r2 is not None and cos_sim_centered < INERT[0] and r2 < INERT[1]
