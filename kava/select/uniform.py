"""`uniform`: candidates at even distances, a control that needs no teacher."""

import numpy as np

from kava.config.kv import UniformSelection
from kava.kv import Geometry
from kava.select.base import Selector
from kava.select.scores import Scores


class Uniform(Selector[UniformSelection]):
    """Keeps the candidates nearest to i·(n−1)/(M−1), so both ends; the middle one where only one is kept."""

    kind = "uniform"

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        kept = self.rows(candidates)
        if kept == 1:
            return np.array([(candidates - 1) // 2])
        # Rounded in whole numbers: halves go up everywhere, so that steps of at least one never meet.
        steps = max(1, kept - 1)
        return (2 * np.arange(kept) * (candidates - 1) + steps) // (2 * steps)
