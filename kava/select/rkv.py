"""`rkv`: R-KV as KaVa scores it."""

import numpy as np

from kava.config.kv import RkvSelection
from kava.kv import Geometry
from kava.select.base import Selector, largest
from kava.select.scores import Scores


class Rkv(Selector[RkvSelection]):
    """Keeps the candidates with the largest S = λ·I + (1−λ)·R (KaVa, arXiv 2510.02312; R-KV, arXiv 2505.24133).

    I is the attention from the answer, R how little a key is like the others: `kava.select.scores.rkv_terms`.
    """

    kind = "rkv"
    needs_scores = True

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        assert scores is not None, "R-KV selects by scores"
        return largest(scores.mixed(self.settings.lam), self.rows(candidates))
