"""`right_crop`: the last candidates."""

import numpy as np

from kava.kv import Geometry
from kava.select.base import Pool, Selector
from kava.select.scores import Scores


class RightCrop(Selector):
    """Keeps the last `budget` candidates."""

    kind = "right_crop"

    def __init__(self, budget: int, candidates: Pool = "reasoning") -> None:
        super().__init__(budget, candidates)

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        return np.arange(candidates - self.rows(candidates), candidates)
