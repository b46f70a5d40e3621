"""`rkv`: R-KV as KaVa scores it."""

from typing import Any

import numpy as np

from kava.kv import Geometry
from kava.select.base import Pool, Selector, largest
from kava.select.scores import Scope, Scores


class Rkv(Selector):
    """Keeps the candidates with the largest S = λ·I + (1−λ)·R (KaVa, arXiv 2510.02312; R-KV, arXiv 2505.24133).

    I is the attention from the answer, R how little a key is like the others: `kava.select.scores.rkv_terms`.

    Parameters
    ----------
    budget, candidates, scope
        As in `Selector`.
    lam
        λ, the weight of importance.
    """

    kind = "rkv"
    needs_scores = True

    def __init__(
        self,
        budget: int,
        candidates: Pool = "reasoning",
        scope: Scope = "example",
        lam: float = 0.1,
    ) -> None:
        super().__init__(budget, candidates, scope)
        self.lam = lam

    @property
    def score_settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "candidates": self.pool, "scope": self.scope}

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        assert scores is not None, "R-KV selects by scores"
        return largest(scores.mixed(self.lam), self.rows(candidates))
