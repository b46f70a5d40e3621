"""`full`: every token."""

import numpy as np

from kava.kv import Geometry
from kava.select.base import Selector
from kava.select.scores import Scores


class Full(Selector):
    """Keeps prompt, reasoning and answer whole."""

    kind = "full"

    def __init__(self) -> None:
        super().__init__(budget=None, candidates="all")

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        return np.arange(candidates)
