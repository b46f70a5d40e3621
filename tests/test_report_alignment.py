"""Alignment of an arm over its seeds, and warnings of many runs in few lines."""

from __future__ import annotations

from typing import Any

import pytest
from report_values import evaluated

from kava.grades import grade
from kava.report.alignment import OverShuffled, arm_alignment, first_cka, over_shuffled
from kava.report.finished import Alignment, FinishedRun, Training, read_alignment
from kava.report.notices import Notice, lost_numbers, merged, run_notices


def run(alignment: dict[str, Any] | None = None, pretrain: Training | None = None, **trained: Any) -> FinishedRun:
    return FinishedRun(pretrain, Training(alignment=read_alignment(alignment), **trained), evaluated({}))


@pytest.mark.parametrize(
    ("cosine", "word"),
    [
        (0.95, "excellent"),
        (0.9499, "good"),
        (0.90, "good"),
        (0.80, "pass"),
        (0.799, "low"),
        (-1, "low"),
        (None, None),
    ],
)
def test_grade_is_of_the_centred_cosine(cosine: float | None, word: str | None) -> None:
    assert grade(cosine) == word


def test_mean_over_seeds_is_null_where_any_seed_has_none_by_head_too() -> None:
    def per_head(*layer: float | None) -> dict[str, Any]:
        return {"per_head": {"r2": [[list(layer)], [list(layer)]]}}

    row = arm_alignment(
        [
            run({"cos_sim_centered": 0.9, "r2": None, **per_head(0.2, 0.4)}),
            run({"cos_sim_centered": 0.92, "r2": 0.5, **per_head(0.4, None)}),
        ],
        complete=True,
    )
    assert row is not None
    assert row.cos_sim_centered == pytest.approx(0.91)
    assert row.grade == "good"
    assert row.r2 is None
    assert row.per_head["cos_sim_centered"] is None
    assert row.per_head["r2"] == [[[pytest.approx(0.3), None]]] * 2
    assert arm_alignment([run(None)], complete=True) is None


def test_retrieval_is_measured_against_the_shuffled_arm_with_the_same_kind_of_aligner() -> None:
    kinds = {"a": "structured", "b": "flat", "c": "structured", "sft": None}
    configs: dict[str, Any] = {arm: {"aligner": kind and {"kind": kind}} for arm, kind in kinds.items()}
    configs["c"]["teacher_kv"] = "shuffled"
    rates = {"a": 0.6, "b": 0.5, "c": 0.2}
    alignments: dict[str, Any] = {arm: Alignment(retrieval_at_1=rate) for arm, rate in rates.items()} | {"sft": None}
    assert over_shuffled(configs, alignments) == {"a": OverShuffled("c", pytest.approx(3.0))}
    configs["a"]["select"] = {"kind": "random"}
    assert over_shuffled(configs, alignments) == {}
    del configs["a"]["select"]
    alignments["c"] = Alignment()
    assert over_shuffled(configs, alignments) == {}


def test_cka_is_that_of_the_first_run_that_has_it_and_none_in_older_manifests() -> None:
    cka: dict[str, list[list[float | None]]] = {"keys": [[1.0]], "values": [[0.5]]}
    runs = {"sft": {"1": run()}, "old": {"1": run({}, Training())}, "new": {"1": run({}, Training(cka=cka))}}
    configs: dict[str, Any] = {arm: {"select": None} for arm in runs}
    assert first_cka(runs, configs) == cka
    assert first_cka({"old": runs["old"]}, configs) is None
    some = {"some": {"1": run({}, Training(cka={"keys": [[0.2]], "values": [[0.1]]}))}}
    configs["some"] = {"select": {"kind": "random"}}
    assert first_cka(some | runs, configs) == cka


def test_one_sentence_of_many_seeds_is_one_line_with_the_seeds_and_ranges_of_numbers() -> None:
    notices = [Notice("b", str(seed), "distill", f"r2 is {seed / 100} at step 200") for seed in (3, 1, 2)]
    notices += [Notice("a", "1", None, "collapse. It says 0.5."), Notice("b", "1", "pretrain", "r2 is 1 at step 200")]
    assert merged(notices) == [
        "a (seed 1): collapse. It says 0.5.",
        "b (seeds 3, 1, 2, distill): r2 is 0.01 to 0.03 at step 200",
        "b (seed 1, pretrain): r2 is 1 at step 200",
    ]


def test_sentences_about_different_heads_are_never_merged() -> None:
    texts = [f"collapse of {n} heads: K layer {n} head {1 - n}" for n in (0, 1)]
    notices = [Notice("a", str(seed), None, text) for seed, text in enumerate(texts)]
    assert merged(notices) == [f"a (seed {seed}): {text}" for seed, text in enumerate(texts)]
    same = [Notice("a", str(seed), None, f"r2 {seed} in V layer 10 head 2") for seed in (0, 1)]
    assert merged(same) == ["a (seeds 0, 1): r2 0 to 1 in V layer 10 head 2"]


def test_collapse_that_the_stage_named_is_not_named_twice() -> None:
    bad = {"cos_sim": 0.99, "r2": 0.01}
    (own,) = run_notices({"a": {"1": run(bad)}})
    assert own.text.startswith("collapse. The raw cosine is 0.99 but r2 is 0.01")
    said = "collapse: raw cosine 0.990 with r2 0.010"
    (carried,) = run_notices({"a": {"1": run(bad, warnings=[said])}})
    assert carried == Notice("a", "1", "distill", said)


def test_many_numbers_that_are_not_finite_are_one_line_for_each_file() -> None:
    places = ["x/manifest.json: a.b", "y/cost.json: seconds", "x/manifest.json: a.c", "x/manifest.json: a.d"]
    assert lost_numbers(places) == [
        "x/manifest.json: a.b and 2 more are not finite numbers; they are left out.",
        "y/cost.json: seconds is not a finite number; it is left out.",
    ]
