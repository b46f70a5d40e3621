"""`random`: candidates drawn blindly, the control that every scored selection has to beat."""

import numpy as np

from kava.config.kv import RandomSelection
from kava.kv import Geometry
from kava.select.base import Selector
from kava.select.scores import Scores


class Random(Selector[RandomSelection]):
    """Draws without replacement; the draw depends on the seed and the example (and layer and head), on nothing else."""

    kind = "random"

    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:  # noqa: ARG002
        if self.scope == "example":
            return self._draw(candidates, example)
        layers = [
            np.stack([self._draw(candidates, example, layer, head) for head in range(geometry.kv_heads)], axis=-1)
            for layer in range(geometry.layers)
        ]
        return np.stack(layers, axis=1)

    def _draw(self, candidates: int, *stream: int) -> np.ndarray:
        return np.random.default_rng([self.settings.seed, *stream]).permutation(candidates)[: self.rows(candidates)]
