"""The report of eighteen arms and five seeds: small enough, readable, and nothing of many runs is lost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from report_ablation import ABLATION, ABLATION_CONTROLS, ABLATION_SEEDS, ablation_runs
from report_files import edit_json, edit_lines

from kava.report.build import Report, build_report
from kava.report.charts.style import arm_styles, highlighted, ranked
from kava.report.page.render import render_html

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    inputs = ablation_runs(tmp_path_factory.mktemp("ablation"), n=60)
    students = {arm: [files.student for files in seeds.values()] for arm, seeds in inputs.runs.items()}
    manifest = students["strong_constraint"][1] / "manifest.json"
    alignment = json.loads(manifest.read_text())["alignment"]
    alignment["per_head"]["r2"][0][0][0] = None
    edit_json(manifest, alignment={**alignment, "cos_sim": 0.99, "r2": 0.01, "retrieval_at_1": None})
    for index, student in enumerate(students["random"]):
        edit_json(student / "manifest.json", warnings=[f"cosine 0.3{index} under 0.5 at step 200"])
    # A part of the loss that only some steps have.
    edit_lines(students["hybrid"][0] / "metrics.jsonl", lambda rows: [{**row, "codi": None} for row in rows])
    return build_report(inputs)


@pytest.fixture(scope="module")
def numbers(report: Report) -> dict[str, Any]:
    return report.to_dict()


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render_html(report)


def charts(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="spec-(\w+)">(.*?)</script>', html)
    return {name: json.loads(spec) for name, spec in found}


def lines(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a curve."""
    return spec["datasets"]["means"]


def test_page_stays_under_three_megabytes(html: str) -> None:
    assert len(html.encode()) < 3_000_000


def test_json_is_strict_and_comes_back_equal(numbers: dict[str, Any]) -> None:
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_every_arm_is_in_the_tables_best_first_and_controls_last(report: Report, html: str) -> None:
    order = ranked(report)
    assert order[0] == "structured"
    assert set(order[-3:]) == set(ABLATION_CONTROLS)
    result = html[html.index('id="result"') : html.index('id="comparisons"')]
    places = [result.index(f"</svg>{name}</span>") for name in order]
    assert places == sorted(places)


def test_no_two_arms_look_alike_and_controls_are_grey(report: Report) -> None:
    styles = arm_styles(report)
    assert len({(style.colour, *style.dash) for style in styles.values()}) == len(ABLATION)
    greys = {styles[name].colour for name in ABLATION_CONTROLS}
    assert len(greys) == 1
    chosen = [name for name in highlighted(report) if name not in ABLATION_CONTROLS]
    assert len({styles[name].colour for name in chosen} | greys) == len(chosen) + 1


def test_each_part_of_the_loss_that_any_arm_logged_has_a_chart(html: str) -> None:
    found = charts(html)
    assert set(found) >= {"ce", "kv", "logit_kd", "cka", "attention", "pretrain", "cos_sim", "cos_sim_centered"}
    assert "codi" not in found
    assert [line["arm"] for line in lines(found["cka"])] == ["structured_cka"]


def test_a_curve_of_many_arms_is_the_mean_and_range_of_its_seeds(numbers: dict[str, Any], html: str) -> None:
    (line,) = lines(charts(html)["logit_kd"])
    step = line["step"][7]
    logged = [r["logit_kd"] for r in numbers["curves"] if (r["arm"], r["step"]) == ("logit_kd", step) and r["logit_kd"]]
    assert len(logged) == len(ABLATION_SEEDS)
    expected = (sum(logged) / len(logged), min(logged), max(logged))
    assert [line[name][7] for name in ("value", "low", "high")] == pytest.approx(expected, rel=1e-3)


def test_comparisons_are_sorted_by_difference_and_show_the_test_over_seeds(numbers: dict[str, Any], html: str) -> None:
    section = html[html.index('id="comparisons"') : html.index("By seed, with McNemar")]
    names = re.findall(r'<th scope="row" class="pair"><span>(\w+) −</span> <span>(\w+)</span></th>', section)
    deltas = {(row["a"], row["b"]): row["delta"] for row in numbers["comparisons"]}
    assert len(names) == 30
    assert [deltas[pair] for pair in names] == sorted(deltas.values(), reverse=True)
    assert "students trained anew" in section
    assert all(row["seed_level"]["mean"] == pytest.approx(row["delta"]) for row in numbers["comparisons"])
    doubtful = [row for row in numbers["comparisons"] if row["caveat"]]
    assert section.count("differs in these students; not shown to repeat over seeds") == len(doubtful)


def test_spread_over_seeds_is_that_of_the_seeds(numbers: dict[str, Any]) -> None:
    arm = numbers["arms"]["hybrid"]
    rates = [row["strict_match"] for row in arm["seeds"].values()]
    mean = sum(rates) / 5
    assert arm["strict_match_sd"] == pytest.approx((sum((r - mean) ** 2 for r in rates) / 4) ** 0.5)
    assert arm["strict_match_range"] == [min(rates), max(rates)]


def test_collapse_of_one_seed_is_said_in_the_header_and_beside_its_arm(numbers: dict[str, Any], html: str) -> None:
    header = html[: html.index("<nav")]
    assert "collapse in strong_constraint, shuffled" in header
    assert numbers["warnings"][0].startswith("strong_constraint (seed 43): collapse.")
    table = html[html.index('id="alignment"') : html.index('id="cost"')]
    assert '<span class="mark wrong">collapse</span>' in table


def test_one_warning_of_five_seeds_is_one_line(numbers: dict[str, Any]) -> None:
    said = "random (seeds 42, 43, 44, 45, 46, distill): cosine 0.30 to 0.34 under 0.5 at step 200"
    assert said in numbers["warnings"]
    assert len(numbers["warnings"]) == 3


def test_heat_maps_of_each_arm_are_folded_but_the_first_two_and_cka_is_shown_once(
    numbers: dict[str, Any], html: str
) -> None:
    aligned = [name for name, arm in numbers["arms"].items() if arm["aligner"]]
    assert html.count('<details class="maps"') == len(aligned) == 16
    assert html.count('<details class="maps" open>') == 2
    assert html.count("CKA of keys<") == html.count("CKA of values<") == 1
    # One of five seeds does not know the first head's r2.
    assert numbers["arms"]["strong_constraint"]["alignment"]["per_head"]["r2"][0][0][0] is None
    assert html.count('<td class="none">n/a</td>') == 1


def test_retrieval_over_shuffled_stands_for_arms_of_that_aligner_only(numbers: dict[str, Any]) -> None:
    over = numbers["retrieval_over_shuffled"]
    assert over["structured"] == {"control": "shuffled", "ratio": pytest.approx(0.82 / 0.02)}
    assert {"elastic_mse", "shuffled", "sft", "strong_constraint"}.isdisjoint(over)


def test_verdict_names_winners_and_counts_the_rest(numbers: dict[str, Any]) -> None:
    parts = numbers["verdict_parts"]
    assert parts["outcome"].startswith("hybrid and structured beat shuffled and sft")
    assert [line.split(",")[0] for line in parts["numbers"]] == [
        "measured from the base student (21.7%)",
        "of 15 KV arms compared with shuffled",
        "of 15 KV arms compared with sft",
    ]
    assert "strong_constraint" in parts["numbers"][2]
