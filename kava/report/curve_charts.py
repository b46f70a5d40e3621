"""The training curves: a small chart for each part of the loss that any arm logged.

An arm is its mean over seeds with their range as a band; where there is one seed, its line. Of few arms the seeds are
thin lines as well. Of many, those picked in the legend stand out in colour, and the others stay as thin grey lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kava.report.charts import CURVE_HEIGHT, Chart, arm_styles, colour_of, finish, highlighted, many_arms
from kava.report.format import listed

# The name under which the page's script finds the chosen arms in every chart.
CHOICE = "highlighted"
GREY = "#8a8f98"


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
    Curve("attention", "distill", "attention", "Attention KL", "The attention part of the structural loss."),
    Curve("pretrain", "pretrain", "loss", "Projector loss", "Pretraining against the frozen student."),
)
SIMILARITIES = (
    Curve(
        "cos_sim_centered",
        "distill",
        "cos_sim_centered",
        "Centred cosine",
        "Channel means removed: predicting the mean scores 0.",
    ),
    Curve("cos_sim", "distill", "cos_sim", "Raw cosine", "Close to 1 for a constant prediction where keys are biased."),
)


def loss_charts(report: Mapping[str, Any]) -> list[Chart]:
    """The parts of the loss that any arm logged."""
    return [chart for curve in LOSSES if (chart := curve_chart(curve, report))]


def similarity_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Centred and raw cosine during distillation, on one scale."""
    values = [row[curve.field] for row in report["curves"] for curve in SIMILARITIES if row["stage"] == curve.stage]
    low = min([value for value in values if value is not None], default=0.0)
    domain = (max(-1.0, int(10 * low - 1) / 10), 1.0)
    return [chart for curve in SIMILARITIES if (chart := curve_chart(curve, report, domain))]


def curves_end(report: Mapping[str, Any]) -> str:
    """Why curves of the KV loss end before the others, and why none ends at the number of a table."""
    measured = (
        "Curves are of training batches; the table of alignment is measured on held-out examples at the end of "
        "training."
    )
    ends: dict[float, list[str]] = {}
    for arm, until in report["kv_until"].items():
        if until < 1:
            ends.setdefault(until, []).append(arm)
    if not ends:
        return measured
    alike = len(ends) == 1 and len(ends[next(iter(ends))]) == len(report["kv_until"])
    shares = [
        f"{100 * until:g}% of the steps{'' if alike else f' ({listed(arms)})'}" for until, arms in sorted(ends.items())
    ]
    return f"The KV loss is off after {listed(shares)} (kv_until), so its curves and the cosines’ end there. {measured}"


def single_points(report: Mapping[str, Any]) -> str:
    """A sentence on the quantities that every run logged once, which make no curve; empty if there are none."""
    single = [curve for curve in (*LOSSES, *SIMILARITIES) if _longest(_logged(curve, report)) == 1]
    if not single:
        return ""
    stages = listed(list(dict.fromkeys(f"{curve.stage}.log_every" for curve in single)))
    return (
        f"Not drawn, since each run logged one point: {listed([curve.title.lower() for curve in single])}. A lower "
        f"{stages} logs more."
    )


def _logged(curve: Curve, report: Mapping[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Arm → seed → step → value, where it was logged."""
    runs: dict[str, dict[str, dict[int, float]]] = {}
    for row in report["curves"]:
        if row["stage"] == curve.stage and row[curve.field] is not None:
            runs.setdefault(row["arm"], {}).setdefault(row["seed"], {})[row["step"]] = row[curve.field]
    return runs


def _longest(runs: Mapping[str, Mapping[str, Mapping[int, float]]]) -> int:
    return max((len(line) for seeds in runs.values() for line in seeds.values()), default=0)


def curve_chart(curve: Curve, report: Mapping[str, Any], domain: tuple[float, float] | None = None) -> Chart | None:
    """One logged quantity against the optimizer step; None where no run logged two values."""
    import altair as alt

    runs = _logged(curve, report)
    logged: dict[str, set[str]] = {}
    for row in report["curves"]:
        if row["stage"] == curve.stage:
            logged.setdefault(row["arm"], set()).add(row["seed"])
    if _longest(runs) < 2:
        return None
    # Given, not derived: a layer whose arms are not chosen has no values to derive it from.
    seen = [value for seeds in runs.values() for line in seeds.values() for value in line.values()]
    y_scale = alt.Scale(domain=list(domain or (min(seen), max(seen))), nice=domain is None, zero=False)
    steps = [step for seeds in runs.values() for line in seeds.values() for step in line]
    x = alt.X(
        "step:Q",
        title="optimizer step",
        scale=alt.Scale(domain=[0, max(steps)]),
        axis=alt.Axis(tickCount=5, format="d"),
    )
    # A mean over the seeds that happen to have the field, or to have finished, would pass for that of the arm.
    missing = [arm for arm in runs if report["arms"][arm]["missing_seeds"]]
    partial = [arm for arm, seeds in runs.items() if arm in missing or set(seeds) != logged[arm]]
    whole = {arm: seeds for arm, seeds in runs.items() if arm not in partial}
    seeds = {"seeds": _seed_rows(runs)}
    means = {"means": [_mean_line(arm, list(of_arm.values())) for arm, of_arm in whole.items()]}
    if many_arms(report):
        chart, rows, without = _many(curve, report, x, y_scale), means, "Left out"
    elif missing or any(len(of_arm) > 1 for of_arm in logged.values()):
        chart, rows, without = _means(curve, report, x, y_scale), seeds | means, "Without a mean"
    else:
        chart, rows, without = _seeds(curve, report, x, y_scale), seeds, ""
    caption = (
        f"{curve.caption} {without}, as not every seed logged it: {listed(partial)}." if partial else curve.caption
    )
    chart = chart.properties(height=CURVE_HEIGHT)
    spec = finish(chart, f"{curve.title} against optimizer step. {caption}")
    return Chart(curve.name, curve.title, caption, spec | {"datasets": rows})


def _table(name: str, columns: list[str]) -> Any:
    """A row per line with lists as its cells, taken apart by the chart: a tenth of the bytes of a row per point.

    The rows are named and put in at the end, since Altair would copy them for every step of making a chart.
    """
    import altair as alt

    return alt.Chart(alt.NamedData(name=name)).transform_flatten(columns)


def _seed_rows(runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "seed": seed, "step": list(line), "value": list(line.values())}
        for arm, seeds in runs.items()
        for seed, line in seeds.items()
    ]


def _seed_lines(report: Mapping[str, Any], x: Any, y_scale: Any) -> Any:
    y = _value("value", y_scale)
    return _table("seeds", ["step", "value"]).encode(x=x, y=y, color=colour_of(arm_styles(report)), detail="seed:N")


def _seeds(curve: Curve, report: Mapping[str, Any], x: Any, y_scale: Any) -> Any:
    import altair as alt

    base = _seed_lines(report, x, y_scale)
    line = base.mark_line(strokeWidth=1.8, opacity=0.9).encode(strokeDash=dash_of(arm_styles(report)))
    return alt.layer(line, _points(base, ["step"], _tooltip(curve, alt.Tooltip("seed:N", title="seed"))))


def _mean_lines(x: Any, y_scale: Any) -> Any:
    table = _table("means", ["step", "value", "low", "high"])
    return table.encode(x=x, y=_value("value", y_scale), detail="arm:N")


def _with_band(coloured: Any, report: Mapping[str, Any], y_scale: Any) -> list[Any]:
    band = coloured.mark_area(opacity=0.14, line=False).encode(y=_value("low", y_scale), y2="high:Q")
    return [band, coloured.mark_line(strokeWidth=2.2).encode(strokeDash=dash_of(arm_styles(report)))]


def _mean_points(curve: Curve, report: Mapping[str, Any], base: Any) -> Any:
    import altair as alt

    spread = [alt.Tooltip(f"{edge}:Q", title=f"{edge}est seed", format=".4~g") for edge in ("low", "high")]
    coloured = base.encode(color=colour_of(arm_styles(report)))
    return _points(coloured, ["step", "arm"], _tooltip(curve, *spread))


def _means(curve: Curve, report: Mapping[str, Any], x: Any, y_scale: Any) -> Any:
    """Every seed as a thin line, and the mean and range of those arms whose seeds all logged the quantity."""
    import altair as alt

    thin = _seed_lines(report, x, y_scale).mark_line(strokeWidth=0.7, opacity=0.45)
    base = _mean_lines(x, y_scale)
    coloured = base.encode(color=colour_of(arm_styles(report)))
    return alt.layer(thin, *_with_band(coloured, report, y_scale), _mean_points(curve, report, base))


def _many(curve: Curve, report: Mapping[str, Any], x: Any, y_scale: Any) -> Any:
    import altair as alt

    chosen = alt.param(name=CHOICE, value=highlighted(report))
    base = _mean_lines(x, y_scale)
    context = base.mark_line(strokeWidth=1, opacity=0.45, color=GREY)
    in_colour = base.transform_filter(f"indexof({CHOICE}, datum.arm) >= 0").encode(color=colour_of(arm_styles(report)))
    points = _mean_points(curve, report, base)
    return alt.layer(context, *_with_band(in_colour, report, y_scale), points).add_params(chosen)


def _mean_line(arm: str, seeds: list[dict[int, float]]) -> dict[str, Any]:
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


def _value(field: str, scale: Any) -> Any:
    import altair as alt

    return alt.Y(f"{field}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5))


def dash_of(styles: Mapping[str, Mapping[str, Any]]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(styles), range=[style["dash"] for style in styles.values()])
    return alt.StrokeDash("arm:N", scale=scale, legend=None)


def _tooltip(curve: Curve, *further: Any) -> list[Any]:
    import altair as alt

    value = alt.Tooltip("value:Q", title=curve.title.lower(), format=".4~g")
    return [alt.Tooltip("arm:N", title="arm"), alt.Tooltip("step:Q", title="step"), value, *further]


def _points(base: Any, near_by: list[str], tooltip: list[Any]) -> Any:
    """Points that show where the pointer is near, and only there."""
    import altair as alt

    near = alt.selection_point(
        name="near", on="pointerover", nearest=True, clear="pointerout", fields=near_by, empty=False
    )
    shown = alt.condition(near, alt.value(1), alt.value(0))
    return base.mark_point(filled=True, size=44).encode(opacity=shown, tooltip=tooltip).add_params(near)
