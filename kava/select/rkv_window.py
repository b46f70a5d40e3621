"""`rkv_window`: R-KV as its authors' repository computes it."""

from typing import Any

import numpy as np

from kava.kv import Geometry
from kava.select.base import Pool, Selector, largest
from kava.select.scores import Scope, Scores


class RkvWindow(Selector):
    """Keeps the last `window` candidates, and before them those with the largest S = λ·I + (1−λ)·R.

    I is the attention from the window, and R spares the newest of similar keys: `kava.select.scores.rkv_window_terms`.

    Parameters
    ----------
    budget
        Tokens kept at most, the window among them; more than `window`.
    candidates, scope
        As in `Selector`.
    lam
        λ, the weight of importance.
    window, kernel, threshold
        Tokens that observe; width of the max-pooling, odd; cosine above which two keys are duplicates.
    """

    kind = "rkv_window"
    needs_scores = True

    def __init__(
        self,
        budget: int,
        candidates: Pool = "reasoning",
        scope: Scope = "example",
        lam: float = 0.07,
        window: int = 8,
        kernel: int = 7,
        threshold: float = 0.5,
    ) -> None:
        assert budget > window, f"a budget of {budget} leaves nothing beside a window of {window}"
        super().__init__(budget, candidates, scope)
        self.lam = lam
        self.window = window
        self.kernel = kernel
        self.threshold = threshold

    @property
    def score_settings(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("window", "kernel", "threshold")}
        return {"kind": self.kind, "candidates": self.pool, "scope": self.scope, **own}

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        assert scores is not None, "R-KV selects by scores"
        mixed = scores.mixed(self.lam)
        window = min(self.window, candidates)
        before = candidates - window
        best = largest(mixed[:before], self.rows(candidates) - window)
        newest = np.arange(before, candidates).reshape(-1, *[1] * (mixed.ndim - 1))
        return np.concatenate([best, np.broadcast_to(newest, (window, *mixed.shape[1:]))])
