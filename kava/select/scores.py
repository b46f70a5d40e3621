"""How much each token's KV is worth, from the teacher's own queries and keys, one layer and one example at a time.

Shape suffixes: B batch, L layers, H KV heads, G query heads per KV head, T tokens, n candidates, D head dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kava.config.kv import Importance, RkvWindowImportance
from kava.data.tokens import Segment

Scope = Literal["example", "head"]
Pool = Literal["reasoning", "all"]
Terms = Callable[[Tensor, Tensor, float, "BatchRow"], tuple[Tensor, Tensor]]


class Scores(NamedTuple):
    """Two terms per candidate token, float32 on the CPU, `[n]` (scope example) or `[n, L, H]` (scope head).

    Attributes
    ----------
    importance
        I: larger for a token that is attended to more.
    redundancy
        R: larger for a token whose key is less like the others.
    """

    importance: Tensor
    redundancy: Tensor

    def mixed(self, lam: float) -> np.ndarray:
        """S = λ·I + (1−λ)·R, in float64, so that mixing adds no ties."""
        return lam * self.importance.double().numpy() + (1 - lam) * self.redundancy.double().numpy()


@dataclass(frozen=True)
class BatchRow:
    """What is known of one row of a batch before the teacher runs.

    Attributes
    ----------
    length
        Real tokens; padding follows them.
    candidates
        Positions that may be kept, sorted, int64 `[n]`.
    answers
        Positions of the answer's tokens, int64 `[A]`.
    """

    length: int
    candidates: Tensor
    answers: Tensor

    @classmethod
    def of(cls, segments: np.ndarray, pool: Pool) -> "BatchRow":
        """From the `Segment` of every token `[T]`."""
        answers = torch.from_numpy(np.flatnonzero(segments == Segment.ANSWER))
        return cls(len(segments), torch.from_numpy(candidates_of(pool, segments)).long(), answers)


def candidates_of(pool: Pool, segments: np.ndarray) -> np.ndarray:
    """Positions of the reasoning's tokens or of all, sorted int32 `[n]`, from the `Segment` of every token `[T]`."""
    allowed = segments == Segment.REASONING if pool == "reasoning" else np.ones(len(segments), bool)
    return np.flatnonzero(allowed).astype(np.int32)


def rkv_terms(query_ATD: Tensor, key_HTD: Tensor, scaling: float, row: BatchRow) -> tuple[Tensor, Tensor]:
    """Importance and redundancy of R-KV as KaVa scores them, of one example in one layer.

    I_j is the attention probability of token j, averaged over the answer's tokens (the queries) and the query heads
    of a KV head's group; the softmax runs over all tokens up to the query. R = softmax over the candidates of −m,
    where m_j = Σ_{i≠j} cos(k_i, k_j) / n over the candidates' keys after RoPE.

    Parameters
    ----------
    query_ATD, key_HTD
        Queries of all attention heads and keys, after RoPE; tokens from `row.length` on are padding and not read.
    scaling
        Factor on their product.
    row
        Candidates and answer.

    Returns
    -------
    Tensor, Tensor
        I and R, each float32 `[H, n]`.

    References
    ----------
    KaVa, arXiv 2510.02312; R-KV, arXiv 2505.24133.
    """
    assert len(row.answers), "R-KV needs answer tokens, since their attention is the importance"
    heads = len(key_HTD)
    key = key_HTD[:, : row.length].float()
    answers = row.answers.to(key.device)
    candidates = row.candidates.to(key.device)
    query = query_ATD[:, answers].float().reshape(heads, -1, key.shape[-1])  # [H, G·A, D]
    future = torch.arange(row.length, device=key.device) > answers[:, None]
    logits = (query @ key.mT * scaling).masked_fill_(future.repeat(query.shape[1] // len(answers), 1), -torch.inf)
    importance = logits.softmax(-1)[..., candidates].mean(1)

    unit = F.normalize(key[:, candidates], dim=-1)
    # A key's cosine with itself is 1 for all of them, and the softmax does not see what is added to all.
    alike = (unit * unit.sum(1, keepdim=True)).sum(-1) / len(candidates)
    return importance, (-alike).softmax(-1)


def rkv_window_terms(
    query_ATD: Tensor, key_HTD: Tensor, scaling: float, row: BatchRow, window: int, kernel: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Importance and redundancy as the R-KV repository computes them, of one example in one layer.

    The candidates, in order, stand for the repository's cache, as if generation had come to the last of them: the
    last `window` candidates are the observation window, and what follows them (the answer) is not looked at.

    I: logits of the window's queries against the keys before the window, the largest over the group's query heads,
    softmax over the keys before the window, mean over the window, max-pooled over `kernel` neighbours. The window
    itself has I = 0; it is kept whatever its score.

    R: in the matrix of cosines between all candidates' keys (window included, diagonal zero), every row loses the
    entry of its newest duplicate, the last column over `threshold`; R = −softmax over candidates of the column means.

    Differs from the repository (github.com/Zefan-Cai/R-KV, `compute_attention_scores` with `max`, `cal_similarity`
    with `last`) in one point: there a row without any duplicate loses its entry in column 0, an artefact of how the
    absence is encoded that favours the first token; here it loses nothing.

    Parameters
    ----------
    query_ATD, key_HTD, scaling, row
        As in `rkv_terms`.
    window, kernel, threshold
        Tokens; tokens, odd; cosine.

    Returns
    -------
    Tensor, Tensor
        I and R, each float32 `[H, n]`.
    """
    heads, dim = len(key_HTD), key_HTD.shape[-1]
    candidates = row.candidates.to(key_HTD.device)
    key = key_HTD[:, candidates].float()
    before = max(0, len(candidates) - window)
    importance = key.new_zeros(key.shape[:2])
    if before:
        query = query_ATD[:, candidates[before:]].float().reshape(heads, -1, dim)  # [H, G·window, D]
        logits = (query @ key[:, :before].mT * scaling).unflatten(1, (-1, window)).amax(1)
        attention = logits.softmax(-1).mean(1)
        importance[:, :before] = F.max_pool1d(attention, kernel, stride=1, padding=kernel // 2)

    unit = F.normalize(key, dim=-1)
    similarity = unit @ unit.mT
    similarity.diagonal(dim1=1, dim2=2).zero_()
    order = torch.arange(len(candidates), device=key.device, dtype=torch.int32)
    duplicates = torch.where(similarity > threshold, order, -1)
    if len(candidates):
        similarity.masked_fill_(order == duplicates.amax(-1, keepdim=True), 0)
    return importance, -similarity.mean(1).softmax(-1)


class ScoreCollector:
    """Scores the candidates of a batch while the teacher reads it; passed to `observed_attention`.

    Nothing larger than one layer's attention rows of one example is ever made, and only `[n]` per example and layer
    (`[H, n]` for scope head) is kept.

    Parameters
    ----------
    settings
        Kind of the scores; with scope `example` they are means over layers and KV heads, with `head` there is one for
        each.
    rows
        One for each row of the batch.
    """

    def __init__(self, settings: Importance, rows: Sequence[BatchRow]) -> None:
        self._terms: Terms = rkv_terms
        if isinstance(settings, RkvWindowImportance):
            self._terms = partial(
                rkv_window_terms, window=settings.window, kernel=settings.kernel, threshold=settings.threshold
            )
        self._scope = settings.scope
        self._rows = rows
        self._collected: list[list[Tensor]] = [[] for _ in rows]
        self._layers = 0

    @torch.no_grad()
    def __call__(self, layer_index: int, query_BATD: Tensor, key_BHTD: Tensor, scaling: float) -> None:
        """Score one layer; layers come in order, each once."""
        assert layer_index == self._layers, f"layer {layer_index} after {self._layers}: a collector is used once"
        assert len(key_BHTD) == len(self._rows), f"{len(key_BHTD)} rows in the batch, {len(self._rows)} expected"
        self._layers += 1
        for collected, row, query_ATD, key_HTD in zip(self._collected, self._rows, query_BATD, key_BHTD, strict=True):
            terms = torch.stack(self._terms(query_ATD, key_HTD, scaling, row))  # [2, H, n]
            collected.append(terms.mean(1) if self._scope == "example" else terms)

    def result(self) -> list[Scores]:
        """Scores of every row, after the forward."""
        assert self._layers, "no layer was observed"
        results = []
        for collected in self._collected:
            layers = torch.stack(collected)  # [L, 2, n] or [L, 2, H, n]
            terms = layers.mean(0) if self._scope == "example" else layers.permute(1, 3, 0, 2)
            results.append(Scores(*terms.cpu()))
        return results
