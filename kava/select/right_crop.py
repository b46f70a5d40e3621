"""`right_crop`: the last candidates."""

import numpy as np

from kava.config.kv import RightCropSelection
from kava.kv import Geometry
from kava.select.base import Selector
from kava.select.scores import Scores


class RightCrop(Selector[RightCropSelection]):
    """Keeps the last `budget` candidates."""

    kind = "right_crop"

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        return np.arange(candidates - self.rows(candidates), candidates)
