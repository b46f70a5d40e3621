"""What every selector can do."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import numpy as np

from kava.config.kv import BudgetSelection, ScopedSelection, Selection
from kava.kv import Geometry
from kava.select.scores import Pool, Scope, Scores, candidates_of

S = TypeVar("S", bound=Selection)


class Selector(ABC, Generic[S]):
    """Chooses the tokens whose KV is kept.

    Parameters
    ----------
    settings
        Of its kind.

    Attributes
    ----------
    budget
        Tokens kept at most; None for no limit.
    pool
        Which tokens may be kept: those of the reasoning (KaVa's own form), or all.
    scope
        `example`: one set of positions for all layers and heads; `head`: a set for each layer and KV head.
    """

    kind: ClassVar[str]
    needs_scores: ClassVar[bool] = False

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.budget = settings.budget if isinstance(settings, BudgetSelection) else None
        self.pool: Pool = settings.candidates if isinstance(settings, BudgetSelection) else "all"
        self.scope: Scope = settings.scope if isinstance(settings, ScopedSelection) else "example"

    def candidates(self, segments: np.ndarray) -> np.ndarray:
        """Positions that may be kept, sorted int32 `[n]`, from the `Segment` of every real token `[T]`."""
        return candidates_of(self.pool, segments)

    def rows(self, candidates: int) -> int:
        """Number of tokens kept of so many candidates; known before the teacher runs."""
        return candidates if self.budget is None else min(candidates, self.budget)

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
        kept: np.ndarray = candidates.astype(np.int32)[np.sort(chosen, axis=0)]
        return kept

    @abstractmethod
    def choose(self, candidates: int, scores: Scores | None, example: int, geometry: Geometry) -> np.ndarray:
        """Indices into the candidates that are kept, in any order; shapes as `select` returns."""


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest along the first axis; of equal scores the lower index comes first."""
    assert np.isfinite(scores).all(), "a score is not finite"
    return np.argsort(-scores, axis=0, kind="stable")[:count]
