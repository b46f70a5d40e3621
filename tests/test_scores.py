"""Scores of tokens are those of their formula, computed slowly, and of the model's own attention and keys."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from parsed import scores as scores_of
from parsed import selector_of
from select_fixtures import GEOMETRY, GROUP, SCALING, WINDOW, attention_inputs, batch_row, observe, segments
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kava.data.tokens import Segment
from kava.models.capture import capture, observed_attention
from kava.select.scores import BatchRow, ScoreCollector


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(values)) for value in values]
    return [exponential / sum(exponentials) for exponential in exponentials]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / math.sqrt(np.dot(a, a)) / math.sqrt(np.dot(b, b)))


def slow_rkv(query: np.ndarray, key: np.ndarray, candidates: list[int], answers: list[int]) -> np.ndarray:
    """I and R of one KV head, `[2, n]`, from the queries of its group `[G, T, D]` and its keys `[T, D]`."""
    importance = [0.0] * len(candidates)
    for head, answer in product(query, answers):
        attention = softmax([SCALING * np.dot(head[answer], key[token]) for token in range(answer + 1)])
        for j, candidate in enumerate(candidates):
            if candidate <= answer:
                importance[j] += attention[candidate] / len(query) / len(answers)
    alike = [
        sum(cosine(key[i], key[j]) for i in candidates if i != j) / len(candidates) for j in candidates
    ]  # fmt: skip
    return np.array([importance, softmax([-mean for mean in alike])])


def slow_rkv_window(query: np.ndarray, key: np.ndarray, candidates: list[int], answers: list[int]) -> np.ndarray:  # noqa: ARG001
    before, seen = candidates[: -WINDOW["window"]], candidates[-WINDOW["window"] :]
    observed = [0.0] * len(before)
    for token in seen:
        logits = [max(SCALING * np.dot(head[token], key[other]) for head in query) for other in before]
        for j, probability in enumerate(softmax(logits) if before else []):
            observed[j] += probability / len(seen)
    reach = WINDOW["kernel"] // 2
    importance = [max(observed[max(0, j - reach) : j + reach + 1]) for j in range(len(before))] + [0.0] * len(seen)

    columns = [0.0] * len(candidates)
    for i, one in enumerate(candidates):
        row = [0.0 if i == j else cosine(key[one], key[other]) for j, other in enumerate(candidates)]
        duplicates = [j for j, similarity in enumerate(row) if similarity > WINDOW["threshold"]]
        if duplicates:
            row[duplicates[-1]] = 0.0
        for j, similarity in enumerate(row):
            columns[j] += similarity / len(candidates)
    return np.array([importance, [-share for share in softmax(columns)]])


def slow_scores(kind: str, scope: str, examples: list[int], row: int, of_row: BatchRow) -> np.ndarray:
    """I and R, `[2, n]` or `[2, n, L, H]`, in float64."""
    slow = {"rkv": slow_rkv, "rkv_window": slow_rkv_window}[kind]
    scores = np.zeros((2, len(of_row.candidates), GEOMETRY.layers, GEOMETRY.kv_heads))
    for layer, (query, key) in enumerate(attention_inputs(examples)):
        for head in range(GEOMETRY.kv_heads):
            group = query[row, head * GROUP : (head + 1) * GROUP].double().numpy()
            own = key[row, head].double().numpy()
            scores[:, :, layer, head] = slow(group, own, of_row.candidates.tolist(), of_row.answers.tolist())
    return scores if scope == "head" else scores.mean((2, 3))


@pytest.mark.parametrize("pool", ["reasoning", "all"])
@pytest.mark.parametrize("scope", ["example", "head"])
@pytest.mark.parametrize("kind", ["rkv", "rkv_window"])
def test_scores_and_positions_equal_a_slow_reference(kind: str, scope: str, pool: str) -> None:
    options = WINDOW if kind == "rkv_window" else {}
    lam, budget = 0.3, 7
    selector = selector_of({"kind": kind, "budget": budget, "scope": scope, "lam": lam, "candidates": pool, **options})
    examples = [0, 1, 2, 3]
    rows = [batch_row(selector.candidates(segments(example)), segments(example)) for example in examples]
    collector = ScoreCollector(selector.settings.scores, rows)
    for index, (row, scores) in enumerate(zip(rows, observe(collector, attention_inputs(examples)), strict=True)):
        expected = slow_scores(kind, scope, examples, index, row)
        assert scores.importance.dtype == scores.redundancy.dtype == torch.float32
        np.testing.assert_allclose(torch.stack(scores), expected, atol=1e-6)

        candidates = row.candidates.numpy()
        mixed = (lam * expected[0] + (1 - lam) * expected[1]).reshape(len(candidates), -1)
        always = set(candidates[-WINDOW["window"] :].tolist()) if kind == "rkv_window" else set()
        best = []
        for column in mixed.T:
            ranked = sorted(zip(-column, candidates.tolist(), strict=True))
            free = [position for _, position in ranked if position not in always]
            best.append(sorted(always | set(free[: max(0, min(budget, len(candidates)) - len(always))])))
        kept = selector.select(candidates, scores, index, GEOMETRY)
        np.testing.assert_array_equal(kept.reshape(len(kept), -1).T, best)


@torch.inference_mode()
def test_scores_of_a_real_forward_come_from_its_own_attention_and_keys() -> None:
    model = tiny_model("qwen2")
    examples = [0, 2, 1]
    of_tokens = [segments(example) for example in examples]
    rows = [batch_row(np.flatnonzero(tokens == Segment.REASONING), tokens) for tokens in of_tokens]
    lengths = torch.tensor([row.length for row in rows])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.randint(3, 61, mask.shape) * mask
    collector = ScoreCollector(scores_of({"kind": "rkv", "scope": "head"}), rows)
    with observed_attention(model, collector):
        (keys_BLHTD, _), _ = capture(model, ids, mask, keys="post_rope")
    model.set_attn_implementation("eager")
    attention = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    for index, (row, scores) in enumerate(zip(rows, collector.result(), strict=True)):
        for layer, of_layer in enumerate(attention):
            from_answer = of_layer[index][:, row.answers][:, :, row.candidates]
            importance = from_answer.unflatten(0, (2, 2)).mean((1, 2))  # [H, n]
            torch.testing.assert_close(scores.importance[:, layer].mT, importance, atol=1e-6, rtol=0)
            own = keys_BLHTD[index, layer][:, row.candidates].double()
            alike = torch.nn.functional.cosine_similarity(own[:, :, None], own[:, None], dim=-1)
            alike -= torch.diag_embed(alike.diagonal(dim1=1, dim2=2))
            novelty = (-alike.mean(-1)).softmax(-1).float()
            torch.testing.assert_close(scores.redundancy[:, layer].mT, novelty, atol=1e-6, rtol=0)


def test_newest_of_equal_keys_is_spared_by_the_window_variant() -> None:
    key = torch.eye(8)[None, [0, 1, 2, 1, 3, 4, 5, 6]]  # tokens 1 and 3 share a key
    query = torch.zeros(1, 1, 8, 8)
    row = BatchRow(8, torch.arange(8), torch.tensor([7]))
    collector = ScoreCollector(scores_of({"kind": "rkv_window"} | WINDOW), [row])
    collector(0, query, key[None], 1.0)
    redundancy = collector.result()[0].redundancy
    # Each is the other's newest duplicate where there are two; with a third, only the newest two are spared.
    assert redundancy.unique().numel() == 1
    key[0, 5] = key[0, 1]
    collector = ScoreCollector(scores_of({"kind": "rkv_window"} | WINDOW), [row])
    collector(0, query, key[None], 1.0)
    redundancy = collector.result()[0].redundancy
    assert redundancy[1] < redundancy[3] < redundancy[5]
    assert redundancy[5] == redundancy[0]


class LargestTensor(TorchDispatchMode):
    """Values in the largest tensor that any operation returns."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.values = max(self.values, leaf.numel())
        return result


@pytest.mark.parametrize("scope", ["example", "head"])
@pytest.mark.parametrize("kind", ["rkv", "rkv_window"])
def test_no_tensor_is_larger_than_one_layers_attention_rows_of_one_example(kind: str, scope: Any) -> None:
    batch, layers, heads, group, tokens, answers, dim = 4, 6, 2, 3, 160, 40, 8
    row = BatchRow(tokens, torch.arange(20, tokens - answers), torch.arange(tokens - answers, tokens))
    options = WINDOW if kind == "rkv_window" else {}
    collector = ScoreCollector(scores_of({"kind": kind, "scope": scope} | options), [row] * batch)
    query, key = torch.randn(batch, heads * group, tokens, dim), torch.randn(batch, heads, tokens, dim)
    with LargestTensor() as largest:
        for layer in range(layers):
            collector(layer, query, key, 1.0)
        collector.result()
    similarities = heads * len(row.candidates) ** 2
    assert largest.values <= (similarities if kind == "rkv_window" else heads * group * answers * tokens)


def test_collector_refuses_a_second_forward_and_an_empty_one() -> None:
    collector = ScoreCollector(scores_of({"kind": "rkv"}), [batch_row(np.arange(4, 21), segments(0))])
    with pytest.raises(AssertionError, match="no layer was observed"):
        collector.result()
    observe(collector, attention_inputs([0]))
    with pytest.raises(AssertionError, match="a collector is used once"):
        collector(0, *attention_inputs([0])[0], SCALING)
