"""A report of text rows, judged by negative log-likelihood: lower is better, and no word of marks is left."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_files import edit_json, edit_lines, write_bench
from report_fixtures import ARMS, write_experiment
from scipy.stats import bootstrap, permutation_test, ttest_rel
from statsmodels.stats.multitest import multipletests
from verdict_fixtures import arm_of, decide, row

from kava.card import card_text
from kava.config import Runtime, load_config
from kava.config.arms import Arm
from kava.errors import UserError
from kava.report.build import Report, build_report
from kava.report.charts.scores import breakdown_charts, score_chart
from kava.report.charts.style import best_first
from kava.report.format import Scale
from kava.report.inputs import ReportInputs
from kava.report.page.first_screen import first_screen
from kava.report.page.render import render_html
from kava.report.statistics.compare import compare
from kava.report.statistics.intervals import bootstrap_ci
from kava.report.statistics.p_values import sign_flip_p
from kava.tasks import task_of
from kava.tasks.metric import ANSWER_NLL, FLEXIBLE_EXTRACT, STRICT_MATCH

# Mean NLL; the best arm has the lowest.
MEANS = {"flat": 1.75, "structured": 1.55, "sft": 1.9}
SEEDS = ("1", "2", "3")
PAIRS = [("structured", "flat"), ("flat", "sft"), ("structured", "sft")]


def text_runs(root: Path, means: dict[str, float] = MEANS, n: int = 240, **further: Any) -> ReportInputs:
    return write_experiment(
        root,
        "own-text",
        {arm: planted._replace(rate=means[arm]) for arm, planted in ARMS.items()},
        SEEDS,
        np.random.default_rng(3),
        n,
        {"pretrain": 50, "distill": 50},
        spread=0.004,
        references={"teacher": 1.2, "base": 2.4},
        kind="text",
        comparisons=PAIRS,
        controls=["sft"],
        config={"preset": "own-text", "data": {"kind": "text"}},
        bench=write_bench(root / "bench.json"),
        **further,
    )


@pytest.fixture(scope="module", name="inputs")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    return text_runs(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", name="report")
def report_of_text(inputs: ReportInputs) -> Report:
    return build_report(inputs)


@pytest.fixture(scope="module", name="html")
def page(report: Report) -> str:
    return render_html(report)


def of_arm(inputs: ReportInputs, arm: str) -> np.ndarray:
    """The numbers of the files, `[seeds, questions]`."""
    lines = [(run.evaluation / "samples.jsonl").read_text().splitlines() for run in inputs.runs[arm].values()]
    return np.array([[json.loads(line)["answer_nll"] for line in seed] for seed in lines])


def test_the_metrics_of_a_kind_of_data_are_its_own() -> None:
    assert task_of("text").metrics == (ANSWER_NLL,)
    assert task_of("demo").metrics == task_of("gsm8k").metrics == (STRICT_MATCH, FLEXIBLE_EXTRACT)
    assert task_of("text").breakdowns == ()
    assert [by.name for by in task_of("gsm8k").breakdowns] == ["steps"]


def test_the_arm_with_the_lower_nll_wins_and_the_verdict_speaks_of_it_in_nats(report: Report) -> None:
    assert report.verdict.outcome == "structured beats flat"
    assert re.match(
        r"flat and structured beat sft by 0\.\d{3} and 0\.\d{3} nats per token; structured beats flat$",
        report.verdict.headline,
    )
    number = next(line for line in report.verdict.numbers if line.startswith("answer NLL is"))
    assert re.match(r"answer NLL is 1\.\d{3} for flat and 1\.\d{3} for sft, a difference of −0\.\d{3} nats", number)
    assert "measured from the base student (2." in report.verdict.numbers[0]
    assert (
        "structured"
        == best_first(report, list(report.arms))[0]
        == first_screen(report, list(report.arms)).lines[0].name
    )
    assert not re.search(r"strict|accuracy|points|%(?! (interval|power))", report.verdict.sentence)


def test_planted_the_other_way_the_other_arm_wins(tmp_path: Path) -> None:
    report = build_report(text_runs(tmp_path, {"flat": 1.55, "structured": 1.75, "sft": 1.3}, n=120))
    assert report.verdict.outcome == "no KV arm beats its control"
    assert "among the KV arms: flat beats structured" in report.verdict.sentence
    assert [comparison.winner for comparison in report.comparisons] == ["flat", "sft", "sft"]


def test_a_student_that_is_ahead_by_its_questions_alone_scored_a_lower_nll() -> None:
    arms = {name: arm_of({"0": nll}, 300, ANSWER_NLL) for name, nll in (("A", 1.7), ("B", 1.5), ("sft", 1.9))}
    rows = [row(*pair, -0.2, seeds=1, metric=ANSWER_NLL) for pair in (("B", "A"), ("A", "sft"), ("B", "sft"))]
    verdict = decide(arms, rows, ["sft"], metric=ANSWER_NLL)
    assert verdict.headline == (
        "A and B scored a lower answer NLL than sft in these students, by 0.200 nats per token; structured scored a "
        "lower answer NLL than flat in these students (with one seed this shows nothing about the arms)"
    )
    # A low NLL is no sign of models that answer nothing.
    low = {name: arm_of({"0": 0.001}, 300, ANSWER_NLL) for name in arms}
    assert decide(low, rows, ["sft"], metric=ANSWER_NLL).headline == verdict.headline


def test_an_arms_mean_and_interval_are_those_of_the_bootstrap_over_questions(inputs, report: Report) -> None:
    for arm, planted_row in report.arms.items():
        numbers = of_arm(inputs, arm)
        score = planted_row.primary
        assert score.mean == pytest.approx(numbers.mean())
        plain = bootstrap(
            (numbers.mean(0),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(8)
        ).confidence_interval
        assert score.ci95 == pytest.approx((plain.low, plain.high), abs=0.006)
        assert planted_row.sd == pytest.approx(numbers.mean(1).std(ddof=1))
        assert planted_row.range == pytest.approx((numbers.mean(1).min(), numbers.mean(1).max()))


def test_comparisons_are_the_paired_tests_of_scipy(inputs, report: Report) -> None:
    p_values = []
    for comparison in report.comparisons:
        a, b = of_arm(inputs, comparison.a), of_arm(inputs, comparison.b)
        differences = (a - b).mean(0)
        assert comparison.delta == pytest.approx(differences.mean())
        plain = bootstrap(
            (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(8)
        ).confidence_interval
        assert comparison.ci95 == pytest.approx((plain.low, plain.high), abs=0.003)
        expected = permutation_test(
            (a.mean(0), b.mean(0)),
            lambda x, y: np.mean(x - y),
            permutation_type="samples",
            n_resamples=4_999,
            rng=np.random.default_rng(9),
        )
        assert comparison.p_value == pytest.approx(expected.pvalue, abs=0.001)
        p_values.append(comparison.p_value)
        level = comparison.seed_level
        assert level is not None
        assert level.p_value == pytest.approx(ttest_rel(a.mean(1), b.mean(1)).pvalue)
        assert level.se == pytest.approx((a.mean(1) - b.mean(1)).std(ddof=1) / np.sqrt(3))
        assert (comparison.effect_size, comparison.mcnemar, comparison.discordant) == (None, {}, {})
    adjusted = multipletests(p_values, method="holm")[1]
    assert [comparison.p_value_holm for comparison in report.comparisons] == pytest.approx(list(adjusted))


def test_a_difference_by_chance_is_tested_as_any_other() -> None:
    rng = np.random.default_rng(2)
    a, b = ({"1": {f"{q:02}": x for q, x in enumerate(rng.normal(2, 1, 14))}} for _ in "ab")
    comparison = compare("a", "b", a, b, ANSWER_NLL)
    differences = np.array(list(a["1"].values())) - np.array(list(b["1"].values()))
    flips = np.array(np.meshgrid(*[[-1, 1]] * 14)).reshape(14, -1).T  # all of them
    exact = np.mean(np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9)
    assert comparison.p_value == pytest.approx(exact, abs=0.02)
    assert sign_flip_p(differences) == comparison.p_value
    assert bootstrap_ci(differences) == comparison.ci95
    assert comparison.advantage("a") == -comparison.advantage("b") == -(comparison.delta or 0.0)
    # Any number of nats can be shown, unlike a share of more than all questions.
    assert comparison.caveat is None


def test_the_json_has_the_metric_under_its_name_and_nothing_of_marks(report: Report) -> None:
    numbers = report.to_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert {"answer_nll_mean", "answer_nll_ci95", "answer_nll_sd", "answer_nll_range"} <= set(numbers["arms"]["flat"])
    assert {"answer_nll", "answer_nll_ci95", "n"} <= set(numbers["arms"]["flat"]["seeds"]["1"])
    assert {row["metric"] for row in numbers["comparisons"]} == {"answer_nll"}
    assert list(numbers["breakdown"]) == ["length"]
    for name in ("strict_match", "flexible_extract"):
        assert name not in json.dumps({key: value for key, value in numbers.items() if key != "configuration"})


def test_the_page_shows_nll_with_its_unit_and_no_marks(report: Report, html: str) -> None:
    body = html[html.index("<body>") : html.index("<script>")]
    for said in (
        '<th scope="col" class="n">Answer NLL</th>',
        "Difference, nats per token",
        "differences in nats per token",
        "with their 95% intervals; lower is better",
        "The interval is the bootstrap’s over questions",
        "Where the arms are furthest apart",
        "<dt>answer NLL</dt>",
    ):
        assert said in body
    for marks in (
        "Strict match",
        "strict match",
        "Flexible",
        "flexible",
        "McNemar",
        "Wilson",
        "Cohen",
        "✓ right",
        "h (eff",
    ):
        assert marks not in body
    assert "By steps" not in body
    assert "spec-wins" not in body
    assert 'name="right"' not in body
    first = report.samples.questions[0]
    shown = Scale(ANSWER_NLL).value(first.answers["1"][0].scores["answer_nll"])
    assert f'<span class="tag">answer NLL {shown}</span>' in body


def test_questions_on_which_the_arms_are_furthest_apart_come_first(report: Report) -> None:
    gaps = [np.ptp([each.scores["answer_nll"] for each in q.answers["1"]]) for q in report.samples.questions]
    assert gaps == sorted(gaps, reverse=True)


def test_charts_name_the_metric_and_hold_every_number(report: Report) -> None:
    chart = score_chart(report)
    assert chart.title == "Answer NLL"
    assert "95% bootstrap interval" in chart.caption
    low, high = chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    reached = [seed.primary.mean for arm in report.arms.values() for seed in arm.seeds.values()]
    assert low < 1.25 < min(filter(None, reached)) < 2.3 < high
    assert "answer NLL, nats per token" in json.dumps(chart.spec)
    (by_length,) = breakdown_charts(report)
    assert by_length.caption.startswith("Answer NLL, mean over seeds.")
    for layer in by_length.spec["layer"]:
        low, high = layer["encoding"]["y"]["scale"]["domain"]
        assert 1.2 < low < 1.55 < 1.9 < high < 2.3


def test_a_row_without_a_finite_nll_is_refused_with_its_place(tmp_path: Path) -> None:
    inputs = text_runs(tmp_path, n=10)
    path = inputs.runs["sft"]["1"].evaluation / "samples.jsonl"
    for wrong in (None, float("nan"), "1.5"):
        edit_lines(path, lambda rows, wrong=wrong: [{**rows[0], "answer_nll": wrong}, *rows[1:]])
        with pytest.raises(UserError, match=r"samples.jsonl, doc_id 0: answer_nll is .*, it must be a finite number"):
            build_report(inputs)


def test_a_manifest_that_contradicts_its_rows_is_named(tmp_path: Path) -> None:
    inputs = text_runs(tmp_path, n=30)
    edit_json(inputs.runs["flat"]["1"].evaluation / "manifest.json", answer_nll=1.0)
    mismatches = build_report(replace(inputs, bench=None)).fairness.mismatches
    assert any("flat (seed 1): answer_nll is 1.0000 in its manifest" in line for line in mismatches)


def test_a_card_of_a_student_of_text_has_its_nll(tmp_path: Path) -> None:
    manifest = {
        "spec": {
            "name": "flat",
            "seed": 1,
            "arm": Arm(aligner={"kind": "flat"}).model_dump(),
            "distill": {"student_lr": 4e-3},
            "export_dtype": "float32",
        },
        "inputs": {},
        "alignment": None,
        "optimizer_steps": 5,
        "train_tokens": 10,
        "projector_parameters": None,
    }
    sources = Runtime.of(load_config(None)).sources
    sources = {**sources, "data": {"kind": "text", "path": str(tmp_path), "revision": None}}
    evaluated = {"answer_nll": 1.5, "n": 80, "spec": {"key": {"evaluation": {"max_new_tokens": 8}}}}
    text = card_text(manifest, sources, evaluated)
    assert "| answer NLL, nats per token | 1.5000 |" in text
    assert "metric" not in text.split("---")[2]
    assert "strict" not in text
