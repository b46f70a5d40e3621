"""The page: a template filled with the report's numbers, its charts and the chart library, in one file."""

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kava.report import format as formats
from kava.report.build import Report
from kava.report.charts.curves import curves_end, loss_charts, similarity_charts, single_points
from kava.report.charts.fidelity import fidelity_chart
from kava.report.charts.scores import breakdown_charts, score_chart
from kava.report.charts.steps import step_charts
from kava.report.charts.style import arm_styles, highlighted, many_arms, ranked
from kava.report.charts.wins import wins_chart
from kava.report.clean import flatten
from kava.report.page.first_screen import first_screen
from kava.report.page.glossary import glossary
from kava.report.page.heatmap import heat_map, layer_by_head
from kava.report.page.saved import saved_tables
from kava.report.samples import FIRST, embedded
from kava.report.statistics.compare import Comparison
from kava.report.verdict.findings import FEW
from kava.tasks.metric import Metric

HERE = Path(__file__).parent
STYLES = ("page.css", "controls.css")
SCRIPTS = ("page.js", "tables.js", "explorer.js")
# Longer texts are folded: this many characters, the rest on demand.
FOLD = 420


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed in one script, safe to stand inside a script element."""
    # Inside strings and regular expressions, where these occur, the backslash changes nothing.
    return re.sub(
        r"<(?=/script|!--|script)",
        r"\\x3c",
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        flags=re.IGNORECASE,
    )


def _together(names: Sequence[str]) -> str:
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names)


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _against_controls(report: Report) -> dict[str, list[tuple[str, float]]]:
    """Arm → (control, arm − control) for each declared comparison with a control."""
    table: dict[str, list[tuple[str, float]]] = {name: [] for name in report.arms}
    for row in report.comparisons:
        for name, other, sign in ((row.a, row.b, 1), (row.b, row.a, -1)):
            is_control = other in report.controls and name not in report.controls
            # Without room to say so, no difference over fewer seeds than declared.
            if is_control and row.delta is not None and row.complete:
                table[name].append((other, sign * row.delta))
    return table


def _maps(report: Report, order: Sequence[str]) -> dict[str, list[Markup]]:
    """Arm → its heat maps by layer and head, for the arms whose manifests hold them."""
    titles = {"cos_sim_centered": "Centred cosine", "r2": "r²"}
    maps = {}
    for name in order:
        alignment = report.arms[name].alignment
        heads = alignment.per_head if alignment else {}
        if known := {title: values for key, title in titles.items() if (values := heads.get(key))}:
            maps[name] = [Markup(layer_by_head(values, title)) for title, values in known.items()]
    return maps


def _cka_maps(report: Report) -> list[Markup]:
    maps = []
    for tensor, values in (report.cka or {}).items():
        rows, columns = ([str(i) for i in range(n)] for n in (len(values), len(values[0])))
        maps.append(Markup(heat_map(values, rows, columns, f"CKA of {tensor}", 0.0, 1.0)))
    return maps


def _departures(differences: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The most common value of each setting in which arms differ, and arm → where it has another."""
    usual = {}
    arms: dict[str, dict[str, Any]] = {name: {} for row in differences.values() for name in row}
    for key, row in differences.items():
        values = list(row.values())
        usual[key] = max(values, key=values.count)
        for name, value in row.items():
            if value != usual[key]:
                arms[name][key] = value
    # A setting that most arms do not have says nothing in the list of common ones.
    return {key: value for key, value in usual.items() if value is not None}, arms


def _is_known(metric: Metric, report: Report) -> bool:
    """Whether any model has a number of it."""
    seeds = [run for arm in report.arms.values() for run in arm.seeds.values()]
    rows = [report.teacher, report.student_base, *report.references.values(), *seeds]
    return any(row.scores[metric.name].mean is not None for row in rows)


def _explorer(report: Report, order: Sequence[str]) -> Markup:
    """The questions as the page's script reads them; `order` of the arms as their numbers in the rows."""
    samples = report.samples
    shown = {
        "arms": samples.arms,
        "questions": [question.to_dict() for question in samples.questions],
        "order": [samples.arms.index(name) for name in order],
        "many": many_arms(report),
        "fold": FOLD,
        "metrics": [
            {"label": metric.label, "mark": metric.proportion}
            for metric in report.metrics
            if metric.name in samples.metrics
        ],
        "marks": report.metrics[0].proportion,
    }
    return Markup(embedded(shown))


def _by_difference(row: Comparison) -> tuple[bool, float]:
    return row.delta is None, -(row.delta or 0.0) * row.metric.sign


def render_html(report: Report) -> str:
    """One self-contained HTML page.

    It loads nothing: scripts, styles and data stand inside it, and its content security policy allows its own two
    scripts, by hash, and no connection, so that nothing a model wrote can run.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: tuple[Callable[..., str], ...] = (
        *(formats.number, formats.integer, formats.percent, formats.probability),
        *(formats.duration, formats.mebibytes, formats.size),
    )
    environment.filters |= {written.__name__: written for written in filters}
    metric, *further = report.metrics
    others = [other for other in further if _is_known(other, report)]
    order, styles = ranked(report), arm_styles(report)
    sort_comparisons = len(report.comparisons) > FEW
    comparisons = sorted(report.comparisons, key=_by_difference) if sort_comparisons else report.comparisons
    usual, departures = _departures(report.arm_differences)
    script, library = _together(SCRIPTS), _library()
    alignments = {name: report.arms[name].alignment for name in order}
    return environment.get_template("page.html.j2").render(
        r=report,
        metric=metric,
        marks=metric.proportion,
        scale=formats.Scale(metric),
        others=[formats.Scale(other) for other in others],
        capital=lambda said: formats.capital(said, metric),
        style=Markup(_together(STYLES)),
        library=Markup(library),
        script=Markup(script),
        script_hashes=f"{_hash(library)} {_hash(script)}",
        accuracy=score_chart(report),
        wins=wins_chart(comparisons, styles),
        at_steps=step_charts(report),
        saved=saved_tables(report.steps_saved),
        breakdowns=breakdown_charts(report),
        losses=loss_charts(report),
        similarities=similarity_charts(report),
        fidelity=fidelity_chart(report),
        styles=styles,
        against_controls=_against_controls(report),
        order=order,
        many=many_arms(report),
        highlighted=highlighted(report),
        seeds=list(dict.fromkeys(seed for arm in report.arms.values() for seed in arm.seeds)),
        comparisons=comparisons,
        comparisons_sorted=sort_comparisons,
        tests=sum(row.tested and row.same_as is None for row in comparisons),
        over_seeds=any(row.seed_level for row in comparisons),
        collapses=[name for name, alignment in alignments.items() if alignment and alignment.collapsed],
        maps=_maps(report, order),
        cka_maps=_cka_maps(report),
        usual=usual,
        departures=departures,
        configuration=yaml.safe_dump(report.configuration, sort_keys=False, allow_unicode=True, width=100),
        provenance=flatten(report.provenance),
        aligned=[name for name in order if report.arms[name].aligner],
        curves_end=curves_end(report),
        single_points=single_points(report),
        glossary=glossary(report),
        glance=first_screen(report, order),
        explorer=_explorer(report, order),
        first=FIRST,
        fold=FOLD,
    )
