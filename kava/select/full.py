"""`full`: every token."""

import numpy as np

from kava.config.kv import FullSelection
from kava.kv import Geometry
from kava.select.base import Selector
from kava.select.scores import Scores


class Full(Selector[FullSelection]):
    """Keeps prompt, reasoning and answer whole."""

    kind = "full"

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        return np.arange(candidates)
