"""`full`: every token."""

import numpy as np

from kava.cache.capture import Geometry
from kava.cache.scores import Scores
from kava.cache.select.base import Selector


class Full(Selector):
    """Keeps prompt, reasoning and answer whole."""

    kind = "full"

    def __init__(self) -> None:
        super().__init__(budget=None, candidates="all")

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        return np.arange(candidates)
