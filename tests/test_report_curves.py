"""What the charts are drawn from: seeds as bands, wins to each side, lines by kind of question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_files import edit_lines
from report_fixtures import finished_runs, numbers_of_two_seeds, report_of_two_seeds, runs_of_one_seed  # noqa: F401

from kava.report.build import Report, build_report
from kava.report.charts.curves import curves_end, loss_charts, similarity_charts, single_points
from kava.report.charts.style import arm_styles
from kava.report.charts.wins import wins_chart
from kava.report.inputs import ReportInputs
from kava.report.page.render import render_html
from kava.report.statistics.compare import Comparison
from kava.tasks.metric import STRICT_MATCH


def all_rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for rows in spec["datasets"].values() for row in rows]


def test_few_arms_with_seeds_have_a_mean_a_band_and_each_seed(report: Report) -> None:
    chart = loss_charts(report)[0]
    assert [layer["mark"]["type"] for layer in chart.spec["layer"]] == ["line", "area", "line", "point"]
    rows = all_rows(chart.spec)
    (mean,) = (row for row in rows if row["arm"] == "flat" and "low" in row)
    seeds = [row["value"] for row in rows if row["arm"] == "flat" and "seed" in row]
    assert len(seeds) == 2
    at = [line[5] for line in seeds]
    assert [mean[name][5] for name in ("value", "low", "high")] == pytest.approx(
        [sum(at) / 2, min(at), max(at)], rel=1e-3
    )


def test_one_seed_is_one_line_without_a_band(runs: ReportInputs) -> None:
    chart = loss_charts(build_report(runs))[0]
    assert [layer["mark"]["type"] for layer in chart.spec["layer"]] == ["line", "point"]


def test_an_arm_whose_seeds_did_not_all_log_a_quantity_has_its_lines_but_no_mean(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=20)
    path = inputs.runs["flat"]["43"].student / "metrics.jsonl"
    edit_lines(path, lambda rows: [{**row, "kv": None} for row in rows])
    chart = next(chart for chart in loss_charts(build_report(inputs)) if chart.name == "kv")
    rows = all_rows(chart.spec)
    assert [row["arm"] for row in rows if "low" in row] == ["structured"]
    assert [row["seed"] for row in rows if row["arm"] == "flat"] == ["42"]
    assert "Without a mean, as not every seed logged it: flat." in chart.caption


def test_a_single_logged_point_is_a_sentence_and_no_empty_chart(runs: ReportInputs) -> None:
    for seeds in runs.runs.values():
        for files in seeds.values():
            edit_lines(files.student / "metrics.jsonl", lambda rows: rows[-1:])
    report = build_report(runs)
    assert {chart.name for chart in loss_charts(report)} <= {"pretrain"}
    assert not similarity_charts(report)
    assert single_points(report).startswith("Not drawn, since each run logged one point: cross entropy")
    assert "A lower distill.log_every logs more." in render_html(report)


def test_curves_need_no_sentence_on_single_points(report: Report) -> None:
    assert loss_charts(report)
    assert single_points(report) == ""


def test_wins_and_losses_are_the_discordant_questions_mean_over_seeds(report: Report) -> None:
    chart = wins_chart(report.comparisons, arm_styles(report))
    assert chart is not None
    bars = {
        (row["comparison"], row["only"]): row
        for layer in chart.spec["layer"]
        for row in layer["data"]["values"]
        if "only" in row
    }
    for row in report.comparisons:
        name = f"{row.a} − {row.b}"
        first, second = (sum(pair[i] for pair in row.discordant.values()) / 2 for i in (0, 1))
        assert (bars[name, "first"]["questions"], bars[name, "second"]["questions"]) == (first, -second)
        assert (first - second) / (row.n or 0) == pytest.approx(row.delta)


def test_each_side_of_wins_and_losses_has_the_colour_of_its_arm(report: Report) -> None:
    styles = arm_styles(report)
    chart = wins_chart(report.comparisons, styles)
    assert chart is not None
    bars = next(layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "bar")
    scale = bars["encoding"]["color"]["scale"]
    assert bars["encoding"]["color"]["field"] == "arm"
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {a: s.colour for a, s in styles.items()}


def test_where_the_kv_loss_ends_is_said_by_the_curves_from_the_settings_of_the_arms(runs: ReportInputs) -> None:
    assert curves_end(build_report(runs)).startswith("Curves are of training batches; the table of alignment")

    def told(**until: float) -> str:
        arms = {arm: config | {"kv_until": until.get(arm, 0.3)} for arm, config in runs.arms.items()}
        return curves_end(build_report(replace(runs, arms=arms)))

    assert told().startswith("The KV loss is off after 30% of the steps (kv_until), so its curves and the cosines’")
    assert told(flat=0.125).startswith(
        "The KV loss is off after 12.5% of the steps (flat) and 30% of the steps (structured) (kv_until), so"
    )
    assert told(flat=1.0).startswith("The KV loss is off after 30% of the steps (structured) (kv_until), so")


def test_comparisons_that_could_not_be_made_have_no_bars() -> None:
    assert wins_chart([Comparison("flat", "sft", STRICT_MATCH)], {}) is None
    assert wins_chart([], {}) is None


def test_tokens_per_second_are_those_of_distillation_mean_over_seeds(numbers: dict[str, Any]) -> None:
    assert numbers["cost"]["flat"]["42"]["tokens_per_second"] == pytest.approx(71_234 / 41.5)
    assert numbers["cost_mean"]["flat"]["tokens_per_second"] == pytest.approx(71_234 / 41.5)
