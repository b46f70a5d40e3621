"""Weights of losses over the course of training."""


def weight_at(
    weight: float, progress: float, warmup_ratio: float, decay_ratio: float = 0.0, until: float = 1.0
) -> float:
    """Weight of a loss: a linear rise from 0, a constant stretch, a linear fall to 0, and 0 from then on.

    Parameters
    ----------
    weight
        Of the constant stretch.
    progress
        Share of the steps that is done, 0 to 1.
    warmup_ratio, decay_ratio
        Shares of the steps, at the start and before `until`, of rise and fall. Where they overlap, the lower one holds.
    until
        Share of the steps after which the weight is 0.
    """
    assert 0.0 <= progress <= 1.0, f"progress is a share of the steps, got {progress}"
    rise = progress / warmup_ratio if warmup_ratio else 1.0
    if progress >= until and until < 1.0:
        return 0.0
    fall = (until - progress) / decay_ratio if decay_ratio else 1.0
    return weight * min(1.0, rise, fall)
