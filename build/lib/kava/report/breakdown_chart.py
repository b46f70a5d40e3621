"""The charts of accuracy by kind of question: a line per arm over the bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.report.charts import CURVE_HEIGHT, Chart, arm_styles, colour_of, finish, highlighted, many_arms
from kava.report.curve_charts import CHOICE, GREY, dash_of

TITLES = {"length": "By length of the question", "steps": "By steps of the solution"}


def breakdown_charts(report: Mapping[str, Any]) -> list[Chart]:
    """By length and by steps; empty where no question was answered in every run."""
    broken_down = report["breakdown"] or {}
    return [_chart(key, bins, report) for key, bins in broken_down.items()]


def _chart(key: str, bins: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Chart:
    import altair as alt

    rows = [
        {
            "bin": bin_["name"],
            "n": bin_["n"],
            "arm": arm,
            "rate": row["rate"],
            "low": row["ci95"][0],
            "high": row["ci95"][1],
        }
        for bin_ in bins
        for arm, row in bin_["arms"].items()
        if row["rate"] is not None
    ]
    styles, many = arm_styles(report), many_arms(report)
    order = [bin_["name"] for bin_ in bins]
    # Where every arm is at zero, a scale from 0 to 0 would draw nothing.
    top = max([row["rate" if many else "high"] for row in rows] + [0.05])
    x = alt.X(
        "bin:O", sort=order, title=None, axis=alt.Axis(labelAngle=0, labelLimit=110), scale=alt.Scale(padding=0.4)
    )
    y = alt.Y(
        "rate:Q",
        title=None,
        scale=alt.Scale(domain=[0, min(1.0, 1.04 * top)], nice=False),
        axis=alt.Axis(format=".0%", tickCount=5),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, detail="arm:N")
    tooltip = [alt.Tooltip("arm:N", title="arm"), alt.Tooltip("bin:O", title="questions")]
    tooltip += [alt.Tooltip(f"{field}:Q", title=title, format=".1%") for field, title in _SHARES]
    tooltip.append(alt.Tooltip("n:Q", title="n"))
    coloured = base.encode(color=colour_of(styles))
    if many:
        chosen = alt.param(name=CHOICE, value=highlighted(report))
        coloured = coloured.transform_filter(f"indexof({CHOICE}, datum.arm) >= 0")
        context = [base.mark_line(strokeWidth=1, opacity=0.45, color=GREY)]
    else:
        coloured = coloured.encode(xOffset=alt.XOffset("arm:N", sort=list(styles)))
        context = [coloured.mark_rule(strokeWidth=2.5, opacity=0.45, strokeCap="round").encode(y="low:Q", y2="high:Q")]
    marks = [
        coloured.mark_line(strokeWidth=1.8).encode(strokeDash=dash_of(styles)),
        coloured.mark_point(filled=True, size=60, opacity=1).encode(tooltip=tooltip),
    ]
    chart = alt.layer(*context, *marks).properties(height=CURVE_HEIGHT)
    if many:
        chart = chart.add_params(chosen)
    intervals = "" if many else " Bars: 95% Wilson intervals, with n = the questions of the group."
    counts = ", ".join(f"{bin_['name']}: {bin_['n']}" for bin_ in bins)
    return Chart(
        key,
        TITLES[key],
        f"Strict match, mean over seeds. Questions: {counts}.{intervals}",
        finish(chart, f"Strict match {TITLES[key].lower()}."),
    )


_SHARES = (("rate", "strict match"), ("low", "95% from"), ("high", "to"))
