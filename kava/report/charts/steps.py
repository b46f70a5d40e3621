"""The first charts of a report with scores at steps: what arms reach on validation questions, and after how long."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from kava.report.alignment import mean
from kava.report.build import Report
from kava.report.charts.lines import Axes, Lines, drawn
from kava.report.charts.style import CURVE_HEIGHT, GREY, Chart, finish
from kava.report.format import Scale, listed
from kava.report.results import ReferenceRow
from kava.report.steps import AtSteps, seed_curves, shown_metrics
from kava.tasks.metric import Metric

# By what time is measured: the column of the rows, and the title of the axis.
STEPS, SECONDS = "step", "seconds"
TIMES = {STEPS: "training step", SECONDS: "seconds of training"}
# A base student further from all else than this share of its range would press the arms into one line.
FAR = 0.5

# Arm → seed → step → seconds of training until then.
Seconds = Mapping[str, Mapping[str, Mapping[int, float]]]


class Level(NamedTuple):
    """A model that was not trained here: its name and mean."""

    name: str
    value: float


def step_charts(report: Report) -> list[Chart]:
    """The primary metric and the likelihood of the gold answers, over steps and then over seconds.

    Empty where no arm was scored at a step.
    """
    at_steps = {arm: {seed: run.at_steps for seed, run in row.seeds.items()} for arm, row in report.arms.items()}
    seconds = _seconds(at_steps)
    charts = []
    for time in TIMES:
        for metric in shown_metrics(report.metrics):
            curves = seed_curves(at_steps, report.start, metric)
            lines = {arm: {s: line for s, line in seeds.items() if line} for arm, seeds in curves.items()}
            if lines := {arm: seeds for arm, seeds in lines.items() if seeds}:
                charts.append(_chart(metric, time, lines, seconds, report))
    return charts


def _seconds(at_steps: AtSteps) -> Seconds:
    return {
        arm: {seed: {0: 0.0} | {step: at.seconds for step, at in scored.items()} for seed, scored in seeds.items()}
        for arm, seeds in at_steps.items()
    }


def _chart(metric: Metric, time: str, lines: Lines, seconds: Seconds, report: Report) -> Chart:
    base = _level("base student", report.student_base, metric) if report.start else None
    rows = [("teacher", report.teacher), *report.references.items()]
    levels = [level for name, row in rows if (level := _level(name, row, metric))]
    points = [(arm, seed, step) for arm, seeds in lines.items() for seed, line in seeds.items() for step in line]
    reached = [lines[arm][seed][step] for arm, seed, step in points if step] + [level.value for level in levels]
    low, high = min(reached), max(reached)
    outside = base is not None and max(base.value - high, low - base.value) > FAR * (high - low)
    if base and not outside:
        low, high = min(low, base.value), max(high, base.value)
    margin = 0.08 * ((high - low) or abs(high) or 1.0)
    domain = [max(0.0, low - margin), min(1.0, high + margin)] if metric.proportion else [low - margin, high + margin]
    last = max(step if time == STEPS else seconds[arm][seed][step] for arm, seed, step in points)
    scale = Scale(metric)
    axes = Axes(
        metric.label,
        report,
        alt.X(f"{time}:Q", title=TIMES[time], scale=alt.Scale(domain=[0, last]), axis=alt.Axis(tickCount=5)),
        alt.Scale(domain=domain, nice=False, zero=False),
        *((".0%", ".1%") if metric.proportion else ("~g", ".4~g")),
        further=(SECONDS,),
        points=True,
    )
    partial = [arm for arm in lines if report.arms[arm].missing_seeds or set(lines[arm]) != set(report.arms[arm].seeds)]
    several = bool(partial) or any(len(seeds) > 1 for seeds in lines.values())
    chart, datasets, without = drawn(axes, lines, partial, several)
    _add_seconds(datasets, seconds)
    layers = [chart, *_across(levels, axes, metric), *(_start(base, axes) if base and not outside else ())]
    caption = f"{scale.title} on {_questions(report)} validation questions{_better(metric)}."
    if levels:
        caption += f" Dashed: {listed([f'{name} {scale.value(value)}' for name, value in levels])}."
    if base:
        caption += f" All arms begin at the base student, {scale.value(base.value)}"
        caption += ", which lies outside of this scale." if outside else "."
    if partial:
        caption += f" {without}, as not every seed has scores: {listed(partial)}."
    title = f"{scale.title} by {TIMES[time]}"
    spec = finish(alt.layer(*layers).properties(height=CURVE_HEIGHT + 40), f"{title}. {caption}")
    return Chart(f"{time}-{metric.name}", title, caption, spec | {"datasets": datasets})


def _level(name: str, row: ReferenceRow, metric: Metric) -> Level | None:
    value = row.at_steps[0].means[metric.name] if 0 in row.at_steps else None
    return None if value is None else Level(name, value)


def _questions(report: Report) -> str:
    counts = {at.n for arm in report.arms.values() for run in arm.seeds.values() for at in run.at_steps.values()}
    return " or ".join(f"{n:,}" for n in sorted(counts))


def _better(metric: Metric) -> str:
    return "" if metric.higher_is_better else "; lower is better"


def _add_seconds(datasets: Mapping[str, Sequence[dict[str, Any]]], seconds: Seconds) -> None:
    """Beside the steps of a row its seconds; of a mean their mean over seeds."""
    for row in (row for rows in datasets.values() for row in rows):
        seeds = seconds[row["arm"]]
        of_row = [seeds[row["seed"]]] if "seed" in row else list(seeds.values())
        row[SECONDS] = [mean([of_seed[step] for of_seed in of_row]) for step in row["step"]]


def _across(levels: Sequence[Level], axes: Axes, metric: Metric) -> list[alt.Chart]:
    """A dashed line with its name for each model; the names in turn at the end and in the middle, to be apart.

    They stand on the side to which curves come last.
    """
    side = {"dy": -3, "baseline": "bottom"} if metric.higher_is_better else {"dy": 3, "baseline": "top"}
    layers = []
    for number, (name, value) in enumerate(levels):
        data = alt.Chart(alt.Data(values=[{"model": name, "value": value}])).encode(y=axes.y("value"))
        tips = [
            alt.Tooltip("model:N", title="reference"),
            _value(axes),
        ]
        layers.append(data.mark_rule(strokeDash=[4, 4], strokeWidth=1.2, color=GREY).encode(tooltip=tips))
        place = alt.ExprRef("width") if number % 2 == 0 else alt.ExprRef("0.6 * width")
        label = data.mark_text(align="right", fontSize=12, **side)
        layers.append(label.encode(text="model:N", x=alt.value(place)))
    return layers


def _value(axes: Axes) -> alt.Tooltip:
    return alt.Tooltip("value:Q", title=axes.title, format=axes.written)


def _start(base: Level, axes: Axes) -> list[alt.Chart]:
    data = alt.Chart(alt.Data(values=[{"model": base.name, "value": base.value, STEPS: 0, SECONDS: 0}]))
    table = data.encode(x=axes.x, y=axes.y("value"))
    tips = [alt.Tooltip("model:N", title="at step 0"), _value(axes)]
    point = table.mark_point(shape="diamond", filled=True, size=90, color=GREY, opacity=1).encode(tooltip=tips)
    return [point, table.mark_text(align="left", dx=9, dy=-9, fontSize=12, baseline="middle").encode(text="model:N")]
