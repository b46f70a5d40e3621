"""The training curves: a small chart for each part of the loss that any arm logged.

An arm is its mean over seeds with their range as a band; where there is one seed, its line. Of few arms the seeds are
thin lines as well. Of many, those picked in the legend stand out in colour, and the others stay as thin grey lines.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import altair as alt

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
)
from kava.report.clean import grouped
from kava.report.format import listed


class Curve(NamedTuple):
    """One logged quantity."""

    name: str
    stage: str
    field: str
    title: str
    caption: str


LOSSES = (
    Curve("ce", "distill", "ce", "Cross entropy", "The one loss that every arm shares, so the one to compare."),
    Curve("kv", "distill", "kv", "KV loss", "Each arm's own KV loss, before its weight."),
    Curve("codi", "distill", "codi", "CODI loss", "Hidden states before the answer, before the weight."),
    Curve("logit_kd", "distill", "logit_kd", "Logit KD loss", "KL to the teacher's stored top-k, before the weight."),
    Curve("cka", "distill", "cka", "CKA loss", "1 − linear CKA with the teacher's KV, before the weight."),
    Curve("hidden", "distill", "hidden", "Hidden-state loss", "Hidden states of all tokens, before the weight."),
    Curve("attention", "distill", "attention", "Attention KL", "The attention part of the structural loss."),
    Curve("pretrain", "pretrain", "loss", "Projector loss", "Pretraining against the frozen student."),
)
CENTRED, RAW = "cos_sim_centered", "cos_sim"
SIMILARITIES = (
    Curve(CENTRED, "distill", CENTRED, "Centred cosine", "Channel means removed: predicting the mean scores 0."),
    Curve(RAW, "distill", RAW, "Raw cosine", "Close to 1 for a constant prediction where keys are biased."),
)

# Step → value of one run, and arm → seed → such a line.
Line = Mapping[int, float]
Lines = Mapping[str, Mapping[str, Line]]


class Axes(NamedTuple):
    """What the layers of one chart share."""

    curve: Curve
    report: Report
    x: alt.X
    y_scale: alt.Scale

    def y(self, field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=None, scale=self.y_scale, axis=alt.Axis(tickCount=5))

    @property
    def colour(self) -> alt.Color:
        return colour_of(arm_styles(self.report))


def loss_charts(report: Report) -> list[Chart]:
    """The parts of the loss that any arm logged."""
    return [chart for curve in LOSSES if (chart := curve_chart(curve, report))]


def similarity_charts(report: Report) -> list[Chart]:
    """Centred and raw cosine during distillation, on one scale."""
    values = [row.values[curve.field] for row in report.curves for curve in SIMILARITIES if row.stage == curve.stage]
    low = min([value for value in values if value is not None], default=0.0)
    domain = (max(-1.0, int(10 * low - 1) / 10), 1.0)
    return [chart for curve in SIMILARITIES if (chart := curve_chart(curve, report, domain))]


def curves_end(report: Report) -> str:
    """Why curves of the KV loss end before the others, and why none ends at the number of a table."""
    measured = (
        "Curves are of training batches; the table of alignment is measured on held-out examples at the end of "
        "training."
    )
    ends = grouped((until, arm) for arm, until in report.kv_until.items() if until < 1)
    if not ends:
        return measured
    alike = len(ends) == 1 and len(ends[next(iter(ends))]) == len(report.kv_until)
    shares = [
        f"{100 * until:g}% of the steps{'' if alike else f' ({listed(arms)})'}" for until, arms in sorted(ends.items())
    ]
    return f"The KV loss is off after {listed(shares)} (kv_until), so its curves and the cosines’ end there. {measured}"


def single_points(report: Report) -> str:
    """A sentence on the quantities that every run logged once, which make no curve; empty if there are none."""
    single = [curve for curve in (*LOSSES, *SIMILARITIES) if _longest(_logged(curve, report)) == 1]
    if not single:
        return ""
    stages = listed(list(dict.fromkeys(f"{curve.stage}.log_every" for curve in single)))
    return (
        f"Not drawn, since each run logged one point: {listed([curve.title.lower() for curve in single])}. A lower "
        f"{stages} logs more."
    )


def _logged(curve: Curve, report: Report) -> Lines:
    """Where it was logged."""
    runs: dict[str, dict[str, dict[int, float]]] = {}
    for row in report.curves:
        if row.stage == curve.stage and (value := row.values[curve.field]) is not None:
            runs.setdefault(row.arm, {}).setdefault(row.seed, {})[row.step] = value
    return runs


def _longest(runs: Lines) -> int:
    return max((len(line) for seeds in runs.values() for line in seeds.values()), default=0)


def curve_chart(curve: Curve, report: Report, domain: tuple[float, float] | None = None) -> Chart | None:
    """One logged quantity against the optimizer step; None where no run logged two values."""
    runs = _logged(curve, report)
    if _longest(runs) < 2:
        return None
    logged = grouped((row.arm, row.seed) for row in report.curves if row.stage == curve.stage)
    # Given, not derived: a layer whose arms are not chosen has no values to derive it from.
    seen = [value for seeds in runs.values() for line in seeds.values() for value in line.values()]
    last = max(step for seeds in runs.values() for line in seeds.values() for step in line)
    x_axis, x_scale = alt.Axis(tickCount=5, format="d"), alt.Scale(domain=[0, last])
    axes = Axes(
        curve,
        report,
        alt.X("step:Q", title="optimizer step", scale=x_scale, axis=x_axis),
        alt.Scale(domain=list(domain or (min(seen), max(seen))), nice=domain is None, zero=False),
    )
    # A mean over the seeds that happen to have the field, or to have finished, would pass for that of the arm.
    missing = [arm for arm in runs if report.arms[arm].missing_seeds]
    partial = [arm for arm, seeds in runs.items() if arm in missing or set(seeds) != set(logged[arm])]
    seeds = {"seeds": _seed_rows(runs)}
    means = {"means": [_mean_row(arm, list(of.values())) for arm, of in runs.items() if arm not in partial]}
    if many_arms(report):
        chart, rows, without = _many(axes), means, "Left out"
    elif missing or any(len(set(of_arm)) > 1 for of_arm in logged.values()):
        chart, rows, without = _means(axes), seeds | means, "Without a mean"
    else:
        chart, rows, without = _seeds(axes), seeds, ""
    caption = curve.caption
    if partial:
        caption += f" {without}, as not every seed logged it: {listed(partial)}."
    spec = finish(chart.properties(height=CURVE_HEIGHT), f"{curve.title} against optimizer step. {caption}")
    return Chart(curve.name, curve.title, caption, spec | {"datasets": rows})


def _seed_rows(runs: Lines) -> list[dict[str, Any]]:
    """A row per line with lists as its cells, taken apart by the chart: a tenth of the bytes of a row per point.

    The rows are named and put in at the end, since Altair would copy them for every step of making a chart.
    """
    return [
        {"arm": arm, "seed": seed, "step": list(line), "value": list(line.values())}
        for arm, seeds in runs.items()
        for seed, line in seeds.items()
    ]


def _mean_row(arm: str, seeds: list[Line]) -> dict[str, Any]:
    """Mean and range over seeds, at the steps that all of them logged."""
    steps = [step for step in seeds[0] if all(step in line for line in seeds)]
    values = [[line[step] for line in seeds] for step in steps]
    return {
        "arm": arm,
        "step": steps,
        "value": [float(f"{sum(each) / len(each):.4g}") for each in values],
        "low": [float(f"{min(each):.4g}") for each in values],
        "high": [float(f"{max(each):.4g}") for each in values],
    }


def _seed_lines(axes: Axes) -> alt.Chart:
    table = alt.Chart(alt.NamedData(name="seeds")).transform_flatten(["step", "value"])
    return table.encode(x=axes.x, y=axes.y("value"), color=axes.colour, detail="seed:N")


def _mean_lines(axes: Axes) -> alt.Chart:
    table = alt.Chart(alt.NamedData(name="means")).transform_flatten(["step", "value", "low", "high"])
    return table.encode(x=axes.x, y=axes.y("value"), detail="arm:N")


def _seeds(axes: Axes) -> alt.LayerChart:
    base = _seed_lines(axes)
    line = base.mark_line(strokeWidth=1.8, opacity=0.9).encode(strokeDash=dash_of(arm_styles(axes.report)))
    return alt.layer(line, _points(axes, base, ["step"], alt.Tooltip("seed:N", title="seed")))


def _means(axes: Axes) -> alt.LayerChart:
    """Every seed as a thin line, and the mean and range of those arms whose seeds all logged the quantity."""
    thin = _seed_lines(axes).mark_line(strokeWidth=0.7, opacity=0.45)
    base = _mean_lines(axes)
    return alt.layer(thin, *_with_band(axes, base.encode(color=axes.colour)), _mean_points(axes, base))


def _many(axes: Axes) -> alt.LayerChart:
    chosen = alt.param(name=CHOICE, value=highlighted(axes.report))
    base = _mean_lines(axes)
    context = base.mark_line(strokeWidth=1, opacity=0.45, color=GREY)
    in_colour = base.transform_filter(f"indexof({CHOICE}, datum.arm) >= 0").encode(color=axes.colour)
    return alt.layer(context, *_with_band(axes, in_colour), _mean_points(axes, base)).add_params(chosen)


def _with_band(axes: Axes, coloured: alt.Chart) -> list[alt.Chart]:
    band = coloured.mark_area(opacity=0.14, line=False).encode(y=axes.y("low"), y2="high:Q")
    return [band, coloured.mark_line(strokeWidth=2.2).encode(strokeDash=dash_of(arm_styles(axes.report)))]


def _mean_points(axes: Axes, base: alt.Chart) -> alt.Chart:
    spread = [alt.Tooltip(f"{edge}:Q", title=f"{edge}est seed", format=".4~g") for edge in ("low", "high")]
    return _points(axes, base.encode(color=axes.colour), ["step", "arm"], *spread)


def _points(axes: Axes, base: alt.Chart, near_by: list[str], *further: alt.Tooltip) -> alt.Chart:
    """Points that show where the pointer is near, and only there."""
    near = alt.selection_point(
        name="near", on="pointerover", nearest=True, clear="pointerout", fields=near_by, empty=False
    )
    value = alt.Tooltip("value:Q", title=axes.curve.title.lower(), format=".4~g")
    tooltip = [alt.Tooltip("arm:N", title="arm"), alt.Tooltip("step:Q", title="step"), value, *further]
    shown = alt.condition(near, alt.value(1), alt.value(0))
    return base.mark_point(filled=True, size=44).encode(opacity=shown, tooltip=tooltip).add_params(near)
