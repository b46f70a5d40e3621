"""Five small examples with made-up queries and keys, and what a collector says of them."""

import numpy as np
import torch

from kava.data.tokens import Segment
from kava.kv import Geometry
from kava.select.scores import BatchRow, ScoreCollector, Scores

GEOMETRY = Geometry(layers=3, kv_heads=2, head_dim=8)
GROUP = 2
SCALING = 8**-0.5
WINDOW = {"window": 3, "kernel": 5, "threshold": 0.2}
# Prompt, reasoning and answer of every example; one has less reasoning than a window, one has none.
EXAMPLES = [(4, 17, 3), (2, 9, 5), (6, 25, 2), (3, 2, 4), (3, 0, 2)]


def segments(example: int) -> np.ndarray:
    return np.repeat([Segment.PROMPT, Segment.REASONING, Segment.ANSWER], EXAMPLES[example])


def batch_row(candidates: np.ndarray, of_tokens: np.ndarray) -> BatchRow:
    answers = np.flatnonzero(of_tokens == Segment.ANSWER)
    return BatchRow(len(of_tokens), torch.from_numpy(candidates).long(), torch.from_numpy(answers))


def attention_inputs(examples: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys per layer of a batch of examples, each example's own, with poisoned padding."""
    longest = max(sum(EXAMPLES[example]) for example in examples)
    layers = []
    for layer in range(GEOMETRY.layers):
        query = torch.full((len(examples), GEOMETRY.kv_heads * GROUP, longest, GEOMETRY.head_dim), torch.nan)
        key = torch.full((len(examples), GEOMETRY.kv_heads, longest, GEOMETRY.head_dim), torch.nan)
        for row, example in enumerate(examples):
            generator = torch.Generator().manual_seed(100 * example + layer)
            for tensor in (query, key):
                own = tensor[row, :, : sum(EXAMPLES[example])]
                own.copy_(torch.randn(own.shape, generator=generator))
        layers.append((query, key + 0.5))
    return layers


def observe(collector: ScoreCollector, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Scores]:
    for layer, (query, key) in enumerate(layers):
        collector(layer, query, key, SCALING)
    return collector.result()
