"""What every selector can do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from kava.data.tokens import Segment
from kava.kv import Geometry
from kava.select.scores import BatchRow, Scope, ScoreCollector, Scores

Pool = Literal["reasoning", "all"]


class Selector(ABC):
    """Chooses the tokens whose KV is kept.

    Parameters
    ----------
    budget
        Tokens kept at most; None for no limit.
    candidates
        Which tokens may be kept: those of the reasoning (KaVa's own form), or all.
    scope
        `example`: one set of positions for all layers and heads; `head`: a set for each layer and KV head.
    """

    kind: ClassVar[str]
    needs_scores: ClassVar[bool] = False

    def __init__(self, budget: int | None, candidates: Pool = "reasoning", scope: Scope = "example") -> None:
        self.budget = budget
        self.scope = scope
        self.pool = candidates

    @property
    def score_settings(self) -> dict[str, Any]:
        """What its scores depend on, as `kv.signals.importance` says it; empty without scores."""
        return {}

    def candidates(self, segments: np.ndarray) -> np.ndarray:
        """Positions that may be kept, sorted int32 `[n]`, from the `Segment` of every real token `[T]`."""
        allowed = segments == Segment.REASONING if self.pool == "reasoning" else np.ones(len(segments), bool)
        return np.flatnonzero(allowed).astype(np.int32)

    def rows(self, candidates: int) -> int:
        """Number of tokens kept of so many candidates; known before the teacher runs."""
        return candidates if self.budget is None else min(candidates, self.budget)

    def collector(self, rows: Sequence[BatchRow]) -> ScoreCollector:
        """Observer that scores the candidates of a batch; only where scores are needed."""
        options = {name: value for name, value in self.score_settings.items() if name != "candidates"}
        return ScoreCollector(rows=rows, **options)

    def select(self, candidates: np.ndarray, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:
        """Positions that are kept.

        Parameters
        ----------
        candidates
            Sorted positions `[n]`.
        scores
            Theirs, where the selector needs scores.
        example
            Index of the example in its split.
        geometry
            Of the teacher.

        Returns
        -------
        np.ndarray
            Sorted int32, `[M]` for scope example, `[M, L, H]` for scope head, with M = `rows(n)`.
        """
        chosen = self.choose(len(candidates), scores, example, geometry)
        return candidates.astype(np.int32)[np.sort(chosen, axis=0)]

    @abstractmethod
    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:
        """Indices into the candidates that are kept, in any order; shapes as `select` returns."""


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest along the first axis; of equal scores the lower index comes first."""
    assert np.isfinite(scores).all(), "a score is not finite"
    return np.argsort(-scores, axis=0, kind="stable")[:count]
