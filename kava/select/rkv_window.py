"""`rkv_window`: R-KV as its authors' repository computes it."""

import numpy as np

from kava.config.kv import RkvWindowSelection
from kava.kv import Geometry
from kava.select.base import Selector, largest
from kava.select.scores import Scores


class RkvWindow(Selector[RkvWindowSelection]):
    """Keeps the last `window` candidates, and before them those with the largest S = λ·I + (1−λ)·R.

    I is the attention from the window, and R spares the newest of similar keys: `kava.select.scores.rkv_window_terms`.
    """

    kind = "rkv_window"
    needs_scores = True

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        assert scores is not None, "R-KV selects by scores"
        mixed = scores.mixed(self.settings.lam)
        window = min(self.settings.window, candidates)
        before = candidates - window
        best = largest(mixed[:before], self.rows(candidates) - window)
        newest = np.arange(before, candidates).reshape(-1, *[1] * (mixed.ndim - 1))
        return np.concatenate([best, np.broadcast_to(newest, (window, *mixed.shape[1:]))])
