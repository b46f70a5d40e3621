"""The charts of the primary metric: per arm with its interval, and by kind of question a line per arm over the bins."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from kava.report.breakdown import Bin
from kava.report.build import Report
from kava.report.charts.style import (
    CHOICE,
    CURVE_HEIGHT,
    GREY,
    Chart,
    arm_styles,
    colour_of,
    dash_of,
    finish,
    highlighted,
    many_arms,
    ranked,
)
from kava.report.format import Scale
from kava.tasks import TASKS
from kava.tasks.metric import Metric

ROW_HEIGHT = 46
ROW_HEIGHT_MANY = 30
TITLES = {"length": "By length of the question"} | {by.name: by.title for task in TASKS for by in task.breakdowns}


def _domain(metric: Metric, values: Sequence[float], beyond: float) -> list[float]:
    """From 0 for shares; where every arm is at zero, a scale from 0 to 0 would draw nothing."""
    if metric.proportion:
        return [0, min(1.0, max([*values, 0.05]) * beyond)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = (beyond - 1) * ((high - low) or abs(high) or 1.0)
    return [low - margin, high + margin]


def _tooltip(field: str, title: str, metric: Metric) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=".1%" if metric.proportion else ".4f")


def _axis_format(metric: Metric) -> str:
    return ".0%" if metric.proportion else "~g"


def _interval_name(metric: Metric) -> str:
    return "95% Wilson interval" if metric.proportion else "95% bootstrap interval"


def score_chart(report: Report) -> Chart:
    """The metric per arm: mean with its interval, one open circle per seed, teacher and base as lines."""
    metric, order, styles = report.metrics[0], ranked(report), arm_styles(report)
    means: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    for name in order:
        arm = report.arms[name]
        if arm.primary.mean is not None and arm.primary.ci95:
            low, high = arm.primary.ci95
            means.append({"arm": name, "mean": arm.primary.mean, "low": low, "high": high})
        seeds += [
            {"arm": name, "seed": seed, "score": row.primary.mean}
            for seed, row in arm.seeds.items()
            if row.primary.mean is not None
        ]
    references = [("base student", report.student_base), ("teacher", report.teacher), *report.references.items()]
    lines = [
        (title, row.primary.mean, -7 - 13 * i)
        for i, (title, row) in enumerate(references)
        if row.primary.mean is not None
    ]
    reached = [*(row["high"] for row in means), *(value for _, value, _ in lines), *(row["score"] for row in seeds)]
    if not metric.proportion:
        reached += [row["low"] for row in means]
    domain = _domain(metric, reached, 1.06)
    x_scale = alt.Scale(domain=domain, nice=False)
    title = metric.label if metric.proportion else f"{metric.label}, {metric.unit}"
    x_axis = alt.Axis(format=_axis_format(metric), title=title, tickCount=6)
    axis = alt.Axis(labelFontSize=13, labelLimit=150, labelPadding=14, labelOverlap=False)
    y = alt.Y("arm:N", sort=order, title=None, axis=axis)
    colour, arm_tip = colour_of(styles), alt.Tooltip("arm:N", title="arm")
    edges = [_tooltip("low", "95% from", metric), _tooltip("high", "to", metric)]
    marks = alt.Chart(alt.Data(values=means)).encode(
        y=y, color=colour, tooltip=[arm_tip, _tooltip("mean", metric.label, metric), *edges]
    )
    interval = marks.mark_rule(strokeWidth=3, opacity=0.55, strokeCap="round").encode(
        x=alt.X("low:Q", scale=x_scale, axis=x_axis), x2="high:Q"
    )
    point = marks.mark_point(filled=True, size=120, opacity=1).encode(x=alt.X("mean:Q", scale=x_scale))
    many = many_arms(report)
    circles = alt.Chart(alt.Data(values=seeds)).mark_point(
        filled=False, size=42, strokeWidth=1.4, yOffset=9 if many else 13
    )
    each = circles.encode(
        y=y,
        x=alt.X("score:Q", scale=x_scale),
        color=colour,
        tooltip=[arm_tip, alt.Tooltip("seed:N", title="seed"), _tooltip("score", metric.label, metric)],
    )
    layers = [interval, point, each]
    for name, value, lift in lines:
        data = alt.Chart(alt.Data(values=[{"model": name, "score": value, "label": name, "lift": lift}])).encode(
            x=alt.X("score:Q", scale=x_scale)
        )
        side = "right" if value - domain[0] > 0.6 * (domain[1] - domain[0]) / 1.06 else "left"
        label = data.mark_text(align=side, dy=lift, fontSize=12, baseline="bottom")
        rule = data.mark_rule(strokeDash=[4, 4], strokeWidth=1.2, color=GREY)
        tips = [alt.Tooltip("model:N", title="reference"), _tooltip("score", metric.label, metric)]
        layers += [rule.encode(tooltip=tips), label.encode(text="label:N", y=alt.value(0))]
    height = (ROW_HEIGHT_MANY if many else ROW_HEIGHT) * len(styles)
    chart = alt.layer(*layers).properties(height=height, padding={"top": 4, "right": 12})
    scale = Scale(metric)
    said = "; ".join(f"{row['arm']} {scale.value(row['mean'])}" for row in means)
    return Chart(
        "accuracy",
        scale.title,
        f"Filled: mean over seeds with its {_interval_name(metric)}. Open: each seed. Dashed: the references.",
        finish(chart, f"{scale.title} per arm with 95% intervals. {said}"),
    )


def breakdown_charts(report: Report) -> list[Chart]:
    """By each kind of question; empty where no question was answered in every run."""
    return [_by_kind(kind, bins, report) for kind, bins in report.breakdown.items()]


def _by_kind(kind: str, bins: Sequence[Bin], report: Report) -> Chart:
    metric, styles, many = report.metrics[0], arm_styles(report), many_arms(report)
    rows: list[dict[str, Any]] = [
        {"bin": bin_.name, "n": bin_.n, "arm": arm, "rate": score.mean, "low": score.ci95[0], "high": score.ci95[1]}
        for bin_ in bins
        for arm, score in bin_.arms.items()
        if score.mean is not None and score.ci95
    ]
    reached = [row["rate" if many else "high"] for row in rows]
    if not metric.proportion:
        reached += [row["rate" if many else "low"] for row in rows]
    axis = alt.Axis(labelAngle=0, labelLimit=110)
    x = alt.X("bin:O", sort=[b.name for b in bins], title=None, axis=axis, scale=alt.Scale(padding=0.4))
    y_scale = alt.Scale(domain=_domain(metric, reached, 1.04), nice=False)
    y = alt.Y("rate:Q", title=None, scale=y_scale, axis=alt.Axis(format=_axis_format(metric), tickCount=5))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, detail="arm:N")
    shares = (("rate", metric.label), ("low", "95% from"), ("high", "to"))
    tooltip = [alt.Tooltip("arm:N", title="arm"), alt.Tooltip("bin:O", title="questions")]
    tooltip += [*(_tooltip(field, title, metric) for field, title in shares), alt.Tooltip("n:Q", title="n")]
    coloured = base.encode(color=colour_of(styles))
    if many:
        chosen = alt.param(name=CHOICE, value=highlighted(report))
        coloured = coloured.transform_filter(f"indexof({CHOICE}, datum.arm) >= 0")
        context = base.mark_line(strokeWidth=1, opacity=0.45, color=GREY)
    else:
        coloured = coloured.encode(xOffset=alt.XOffset("arm:N", sort=list(styles)))
        context = coloured.mark_rule(strokeWidth=2.5, opacity=0.45, strokeCap="round").encode(
            y=alt.Y("low:Q", scale=y_scale), y2="high:Q"
        )
    line = coloured.mark_line(strokeWidth=1.8).encode(strokeDash=dash_of(styles))
    point = coloured.mark_point(filled=True, size=60, opacity=1).encode(tooltip=tooltip)
    chart = alt.layer(context, line, point).properties(height=CURVE_HEIGHT)
    if many:
        chart = chart.add_params(chosen)
    intervals = "" if many else f" Bars: {_interval_name(metric)}s, with n = the questions of the group."
    counts = ", ".join(f"{bin_.name}: {bin_.n}" for bin_ in bins)
    title = Scale(metric).title
    return Chart(
        kind,
        TITLES[kind],
        f"{title}, mean over seeds. Questions: {counts}.{intervals}",
        finish(chart, f"{title} {TITLES[kind].lower()}."),
    )
