"""`random`: candidates drawn blindly, the control that every scored selection has to beat."""

import numpy as np

from kava.kv import Geometry
from kava.select.base import Pool, Selector
from kava.select.scores import Scope, Scores


class Random(Selector):
    """Draws without replacement; the draw depends on the seed and the example (and layer and head), on nothing else.

    Parameters
    ----------
    budget, candidates, scope
        As in `Selector`.
    seed
        Of the draw, not negative.
    """

    kind = "random"

    def __init__(
        self,
        budget: int,
        candidates: Pool = "reasoning",
        scope: Scope = "example",
        seed: int = 0,
    ) -> None:
        super().__init__(budget, candidates, scope)
        self.seed = seed

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        if self.scope == "example":
            return self._draw(candidates, example)
        layers = [
            np.stack([self._draw(candidates, example, layer, head) for head in range(geometry.kv_heads)], axis=-1)
            for layer in range(geometry.layers)
        ]
        return np.stack(layers, axis=1)

    def _draw(self, candidates: int, *stream: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *stream]).permutation(candidates)[: self.rows(candidates)]
