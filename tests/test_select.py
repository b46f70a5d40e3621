"""Selection keeps the tokens that its rule says, whatever else is in the batch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from parsed import selector_of
from pydantic import TypeAdapter, ValidationError
from select_fixtures import EXAMPLES, GEOMETRY, WINDOW, attention_inputs, batch_row, observe, segments

from kava.config.kv import Selection
from kava.select import SELECTORS
from kava.select.scores import ScoreCollector, Scores

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


def select(settings: dict[str, Any], examples: list[int]) -> list[np.ndarray]:
    """Positions kept of every example of a batch."""
    selector = selector_of(settings)
    candidates = [selector.candidates(segments(example)) for example in examples]
    rows = [batch_row(allowed, segments(example)) for allowed, example in zip(candidates, examples, strict=True)]
    scores: list[Any] = [None] * len(examples)
    if selector.needs_scores:
        scores = observe(ScoreCollector(selector.settings.scores, rows), attention_inputs(examples))
    return [
        selector.select(allowed, of_example, example, GEOMETRY)
        for allowed, of_example, example in zip(candidates, scores, examples, strict=True)
    ]


@every_selector
def test_selected_positions_are_sorted_unique_candidates_of_the_promised_number(settings: dict[str, Any]) -> None:
    selector = selector_of(settings)
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
        count = len(selector_of(settings).candidates(segments(example)))
        for budget in {max(count, WINDOW["window"] + 1), count + 5}:
            generous = settings if settings["kind"] == "full" else settings | {"budget": budget}
            kept = select(generous, [example])[0]
            candidates = selector_of(generous).candidates(segments(example))
            np.testing.assert_array_equal(
                kept.reshape(count, -1 if count else 1).T, [candidates] * (kept[:1].size or 1)
            )


def test_candidates_are_the_reasoning_unless_all_are_asked_for() -> None:
    of_tokens = segments(0)
    for settings in SETTINGS:
        everything = settings["kind"] == "full" or settings.get("candidates") == "all"
        expected = np.arange(24) if everything else np.arange(4, 21)
        np.testing.assert_array_equal(selector_of(settings).candidates(of_tokens), expected)


def test_right_crop_keeps_the_last_candidates() -> None:
    assert select({"kind": "right_crop", "budget": 4}, [0])[0].tolist() == [17, 18, 19, 20]


def test_uniform_covers_both_ends_at_even_distances() -> None:
    for count in range(1, 60):
        for budget in range(1, count + 1):
            kept = selector_of({"kind": "uniform", "budget": budget}).select(np.arange(count), None, 0, GEOMETRY)
            assert len(set(kept.tolist())) == budget
            if budget > 1:
                assert (kept[0], kept[-1]) == (0, count - 1)
                assert np.ptp(np.diff(kept)) <= 1
            else:
                assert kept.tolist() == [(count - 1) // 2]


def test_random_draws_differ_by_seed_example_layer_and_head_and_are_pinned() -> None:
    candidates = np.arange(1000)

    def draw(example: int, **settings: Any) -> np.ndarray:
        selector = selector_of({"kind": "random", "budget": 5, **settings})
        return selector.select(candidates, None, example, GEOMETRY)

    per_head = draw(0, scope="head").reshape(5, -1).T.tolist()
    draws = [*per_head, draw(1).tolist(), draw(0, seed=1).tolist()]
    assert len({tuple(positions) for positions in draws}) == len(draws)
    # A store holds positions drawn long ago: another NumPy must draw the same.
    assert draw(3, seed=42).tolist() == [135, 392, 445, 518, 899]


def test_random_keeps_every_candidate_equally_often() -> None:
    selector = selector_of({"kind": "random", "budget": 5})
    counts = np.zeros(20)
    for example in range(2000):
        counts[selector.select(np.arange(20), None, example, GEOMETRY)] += 1
    # Binomial, p = 1/4: standard deviation 19 of 2000.
    assert np.abs(counts - 500).max() < 5 * math.sqrt(2000 / 4 * 3 / 4)


def test_equal_scores_prefer_the_lower_position() -> None:
    levels = Scores(torch.arange(400) % 2 / 400, torch.full((400,), 1 / 400))
    rkv = selector_of({"kind": "rkv", "budget": 150})
    window = selector_of({"kind": "rkv_window", "budget": 150, "window": 2})
    odd = [*range(1, 300, 2)]
    assert rkv.select(np.arange(400), levels, 0, GEOMETRY).tolist() == odd
    assert window.select(np.arange(400), levels, 0, GEOMETRY).tolist() == [*odd[:148], 398, 399]


def test_settings_of_every_kind_make_their_selector() -> None:
    adapter = TypeAdapter(Selection)
    for selector in SELECTORS:
        settings = adapter.validate_python({"kind": selector.kind}).model_dump(mode="json")
        assert type(selector_of(settings)) is selector


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
