"""Selection keeps the tokens that its formula says, whatever else is in the batch."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from pydantic import TypeAdapter, ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kava.cache.capture import Geometry, capture, observed_attention
from kava.cache.scores import BatchRow, ScoreCollector, Scores
from kava.cache.select import SELECTORS, make_selector
from kava.config.kv import Selection
from kava.data.tokens import Segment

GEOMETRY = Geometry(layers=3, kv_heads=2, head_dim=8)
GROUP = 2
SCALING = 8**-0.5
WINDOW = {"window": 3, "kernel": 5, "threshold": 0.2}
# Prompt, reasoning and answer of every example; one has less reasoning than a window, one has none.
EXAMPLES = [(4, 17, 3), (2, 9, 5), (6, 25, 2), (3, 2, 4), (3, 0, 2)]

SETTINGS: list[dict[str, Any]] = [
    {"kind": "full"},
    {"kind": "right_crop", "budget": 7},
    {"kind": "uniform", "budget": 7},
    *({"kind": "random", "budget": 7, "scope": scope} for scope in ("example", "head")),
    *({"kind": "rkv", "budget": 7, "scope": scope} for scope in ("example", "head")),
    *({"kind": "rkv_window", "budget": 7, "scope": scope, **WINDOW} for scope in ("example", "head")),
]
SETTINGS += [settings | {"candidates": "all"} for settings in SETTINGS[1:]]
every_selector = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))


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


def select(settings: dict[str, Any], examples: list[int]) -> list[np.ndarray]:
    """Positions kept of every example of a batch."""
    selector = make_selector(settings)
    candidates = [selector.candidates(segments(example)) for example in examples]
    rows = [batch_row(allowed, segments(example)) for allowed, example in zip(candidates, examples, strict=True)]
    scores: list[Any] = [None] * len(examples)
    if selector.needs_scores:
        scores = observe(selector.collector(rows), attention_inputs(examples))
    return [
        selector.select(allowed, of_example, example, GEOMETRY)
        for allowed, of_example, example in zip(candidates, scores, examples, strict=True)
    ]


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
    selector = make_selector(
        {"kind": kind, "budget": budget, "scope": scope, "lam": lam, "candidates": pool, **options}
    )
    examples = [0, 1, 2, 3]
    rows = [batch_row(selector.candidates(segments(example)), segments(example)) for example in examples]
    collector = selector.collector(rows)
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
    collector = ScoreCollector("rkv", "head", rows)
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


@every_selector
def test_selected_positions_are_sorted_unique_candidates_of_the_promised_number(settings: dict[str, Any]) -> None:
    selector = make_selector(settings)
    assert settings.get("scope", "example") == selector.scope
    examples = list(range(len(EXAMPLES)))
    for example, kept in zip(examples, select(settings, examples), strict=True):
        candidates = selector.candidates(segments(example))
        rows = selector.rows(len(candidates))
        assert rows == (len(candidates) if settings["kind"] == "full" else min(len(candidates), settings["budget"]))
        assert kept.dtype == np.int32
        assert kept.shape == ((rows, 3, 2) if selector.scope == "head" else (rows,))
        assert (np.diff(kept, axis=0) > 0).all()
        assert np.isin(kept, candidates).all()
        assert (kept < sum(EXAMPLES[example])).all(), "padding is kept"


@every_selector
def test_selection_depends_on_nothing_but_the_example(settings: dict[str, Any]) -> None:
    together = select(settings, [0, 1, 2, 3, 4])
    for example in (4, 2, 0, 3, 1):
        np.testing.assert_array_equal(select(settings, [example])[0], together[example])


@every_selector
def test_budget_of_all_candidates_keeps_them_in_order(settings: dict[str, Any]) -> None:
    for example in range(len(EXAMPLES)):
        count = len(make_selector(settings).candidates(segments(example)))
        for budget in {max(count, WINDOW["window"] + 1), count + 5}:
            generous = settings if settings["kind"] == "full" else settings | {"budget": budget}
            kept = select(generous, [example])[0]
            candidates = make_selector(generous).candidates(segments(example))
            np.testing.assert_array_equal(
                kept.reshape(count, -1 if count else 1).T, [candidates] * (kept[:1].size or 1)
            )


def test_candidates_are_the_reasoning_unless_all_are_asked_for() -> None:
    of_tokens = segments(0)
    for settings in SETTINGS:
        everything = settings["kind"] == "full" or settings.get("candidates") == "all"
        expected = np.arange(24) if everything else np.arange(4, 21)
        np.testing.assert_array_equal(make_selector(settings).candidates(of_tokens), expected)


def test_right_crop_keeps_the_last_candidates() -> None:
    assert select({"kind": "right_crop", "budget": 4}, [0])[0].tolist() == [17, 18, 19, 20]


def test_uniform_covers_both_ends_at_even_distances() -> None:
    for count in range(1, 60):
        for budget in range(1, count + 1):
            kept = make_selector({"kind": "uniform", "budget": budget}).select(np.arange(count), None, 0, GEOMETRY)
            assert len(set(kept.tolist())) == budget
            if budget > 1:
                assert (kept[0], kept[-1]) == (0, count - 1)
                assert np.ptp(np.diff(kept)) <= 1
            else:
                assert kept.tolist() == [(count - 1) // 2]


def test_random_draws_differ_by_seed_example_layer_and_head_and_are_pinned() -> None:
    candidates = np.arange(1000)

    def draw(example: int, **settings: Any) -> np.ndarray:
        selector = make_selector({"kind": "random", "budget": 5, **settings})
        return selector.select(candidates, None, example, GEOMETRY)

    per_head = draw(0, scope="head").reshape(5, -1).T.tolist()
    draws = [*per_head, draw(1).tolist(), draw(0, seed=1).tolist()]
    assert len({tuple(positions) for positions in draws}) == len(draws)
    # A store holds positions drawn long ago: another NumPy must draw the same.
    assert draw(3, seed=42).tolist() == [135, 392, 445, 518, 899]


def test_random_keeps_every_candidate_equally_often() -> None:
    selector = make_selector({"kind": "random", "budget": 5})
    counts = np.zeros(20)
    for example in range(2000):
        counts[selector.select(np.arange(20), None, example, GEOMETRY)] += 1
    # Binomial, p = 1/4: standard deviation 19 of 2000.
    assert np.abs(counts - 500).max() < 5 * math.sqrt(2000 / 4 * 3 / 4)


def test_equal_scores_prefer_the_lower_position() -> None:
    levels = Scores(torch.arange(400) % 2 / 400, torch.full((400,), 1 / 400))
    rkv = make_selector({"kind": "rkv", "budget": 150})
    window = make_selector({"kind": "rkv_window", "budget": 150, "window": 2})
    odd = [*range(1, 300, 2)]
    assert rkv.select(np.arange(400), levels, 0, GEOMETRY).tolist() == odd
    assert window.select(np.arange(400), levels, 0, GEOMETRY).tolist() == [*odd[:148], 398, 399]


def test_newest_of_equal_keys_is_spared_by_the_window_variant() -> None:
    key = torch.eye(8)[None, [0, 1, 2, 1, 3, 4, 5, 6]]  # tokens 1 and 3 share a key
    query = torch.zeros(1, 1, 8, 8)
    row = BatchRow(8, torch.arange(8), torch.tensor([7]))
    collector = ScoreCollector("rkv_window", "example", [row], window=2, kernel=3, threshold=0.5)
    collector(0, query, key[None], 1.0)
    redundancy = collector.result()[0].redundancy
    # Each is the other's newest duplicate where there are two; with a third, only the newest two are spared.
    assert redundancy.unique().numel() == 1
    key[0, 5] = key[0, 1]
    collector = ScoreCollector("rkv_window", "example", [row], window=2, kernel=3, threshold=0.5)
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
    collector = ScoreCollector(kind, scope, [row] * batch, **(WINDOW if kind == "rkv_window" else {}))
    query, key = torch.randn(batch, heads * group, tokens, dim), torch.randn(batch, heads, tokens, dim)
    with LargestTensor() as largest:
        for layer in range(layers):
            collector(layer, query, key, 1.0)
        collector.result()
    similarities = heads * len(row.candidates) ** 2
    assert largest.values <= (similarities if kind == "rkv_window" else heads * group * answers * tokens)


def test_collector_refuses_a_second_forward_and_an_empty_one() -> None:
    collector = ScoreCollector("rkv", "example", [batch_row(np.arange(4, 21), segments(0))])
    with pytest.raises(AssertionError, match="no layer was observed"):
        collector.result()
    observe(collector, attention_inputs([0]))
    with pytest.raises(AssertionError, match="a collector is used once"):
        collector(0, *attention_inputs([0])[0], SCALING)


def test_settings_of_every_kind_make_their_selector() -> None:
    adapter = TypeAdapter(Selection)
    for selector in SELECTORS:
        settings = adapter.validate_python({"kind": selector.kind}).model_dump(mode="json")
        assert type(make_selector(settings)) is selector


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "rkv", "lam": 1.1}, "less than or equal to 1"),
        ({"kind": "right_crop", "budget": 0}, "greater than 0"),
        ({"kind": "right_crop", "scope": "head"}, "unknown key 'scope'"),
        ({"kind": "rkv_window", "kernel": 6}, "choose an odd number, such as 7"),
        ({"kind": "rkv_window", "budget": 8}, "budget=8 leaves nothing to select beside the window=8"),
        ({"kind": "random", "seed": -1}, "greater than or equal to 0"),
        ({"kind": "ukv"}, "'right_crop', 'rkv'"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Selection).validate_python(settings)
