"""Weights of losses over the course of training."""


def weight_at(weight: float, progress: float, warmup_ratio: float, decay_ratio: float = 0.0) -> float:
    """Weight of a loss: a linear rise from 0, a constant stretch, a linear fall to 0.

    Parameters
    ----------
    weight
        Of the constant stretch.
    progress
        Share of the steps that is done, 0 to 1.
    warmup_ratio, decay_ratio
        Shares of the steps, at the start and at the end, of rise and fall. Where they overlap, the lower one holds.
    """
    assert 0.0 <= progress <= 1.0, f"progress is a share of the steps, got {progress}"
    rise = progress / warmup_ratio if warmup_ratio else 1.0
    fall = (1.0 - progress) / decay_ratio if decay_ratio else 1.0
    return weight * min(1.0, rise, fall)
