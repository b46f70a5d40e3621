"""The charts, as Vega-Lite specifications made with Altair; the page's style sheet colours text and axes.

Arms are told apart by colour (Okabe and Ito, "Color universal design", 2008) and by dash pattern, so that
the curves survive colour blindness and grey print. Text and axis colours are left to CSS, which overrides
the SVG's own attributes and so follows the reader's light or dark scheme and print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The six of the eight that show on white and on black (no black, no yellow), strongest contrast first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 3), (9, 3, 2, 3), (5, 2), (12, 4))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
CURVE_HEIGHT = 210
ROW_HEIGHT = 46


@dataclass(frozen=True)
class Chart:
    """One chart: `name` is its id in the page, `spec` is Vega-Lite."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arm → `colour` and `dash` (SVG stroke-dasharray), the same in all charts and legends."""
    return {
        arm: {"colour": PALETTE[i % len(PALETTE)], "dash": list(DASHES[i % len(DASHES)])} for i, arm in enumerate(arms)
    }


def finish(chart: Any, description: str) -> dict[str, Any]:
    spec: dict[str, Any] = (
        chart.properties(
            width="container",
            autosize={"type": "fit-x", "contains": "padding"},
            description=description,
            background="transparent",
        )
        .configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelOverlap=True, titlePadding=8)
        .configure_axisX(grid=False, ticks=True)
        .configure_axisY(ticks=False, domain=False, labelPadding=6)
        .to_dict()
    )
    # Only a label for tools, and the one URL the page would otherwise carry outside the library itself.
    del spec["$schema"]
    return spec


def _colour(styles: Mapping[str, Mapping[str, Any]]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(styles), range=[style["colour"] for style in styles.values()])
    return alt.Color("arm:N", scale=scale, legend=None)


def accuracy_chart(report: Mapping[str, Any]) -> Chart:
    """Strict match per arm: mean with its interval, one open circle per seed, teacher and base as lines."""
    import altair as alt

    styles = arm_styles(list(report["arms"]))
    means, seeds = [], []
    for name, arm in report["arms"].items():
        if arm["strict_match_mean"] is not None:
            low, high = arm["strict_match_ci95"]
            means.append({"arm": name, "mean": arm["strict_match_mean"], "low": low, "high": high})
        seeds += [
            {"arm": name, "seed": seed, "strict": row["strict_match"]}
            for seed, row in arm["seeds"].items()
            if row["strict_match"] is not None
        ]
    lines = [
        {"model": title, "strict": report[key]["strict_match"], "label": title, "lift": lift}
        for key, title, lift in (("teacher", "teacher", -20), ("student_base", "base student", -7))
        if report[key]["strict_match"] is not None
    ]
    top = max([row["high"] for row in means] + [row["strict"] for row in lines + seeds] + [0.05])
    x_scale = alt.Scale(domain=[0, min(1.0, top * 1.06)], nice=False)
    x_axis = alt.Axis(format=".0%", title="strict match", tickCount=6)
    y = alt.Y(
        "arm:N",
        sort=list(styles),
        title=None,
        axis=alt.Axis(labelFontSize=13, labelLimit=130, labelPadding=14),
    )
    colour = _colour(styles)

    def share(field: str, title: str) -> Any:
        return alt.Tooltip(f"{field}:Q", title=title, format=".1%")

    marks = alt.Chart(alt.Data(values=means)).encode(
        y=y,
        color=colour,
        tooltip=[
            alt.Tooltip("arm:N", title="arm"),
            share("mean", "strict match"),
            share("low", "95% from"),
            share("high", "to"),
        ],
    )
    interval = marks.mark_rule(strokeWidth=3, opacity=0.55, strokeCap="round").encode(
        x=alt.X("low:Q", scale=x_scale, axis=x_axis), x2="high:Q"
    )
    point = marks.mark_point(filled=True, size=120, opacity=1).encode(x=alt.X("mean:Q", scale=x_scale))
    each = (
        alt.Chart(alt.Data(values=seeds))
        .mark_point(filled=False, size=42, strokeWidth=1.4, yOffset=13)
        .encode(
            y=y,
            x=alt.X("strict:Q", scale=x_scale),
            color=colour,
            tooltip=[
                alt.Tooltip("arm:N", title="arm"),
                alt.Tooltip("seed:N", title="seed"),
                share("strict", "strict match"),
            ],
        )
    )
    layers = [interval, point, each]
    for line in lines:
        data = alt.Chart(alt.Data(values=[line])).encode(x=alt.X("strict:Q", scale=x_scale))
        side = "right" if line["strict"] > 0.6 * top else "left"
        label = data.mark_text(align=side, dy=line["lift"], fontSize=12, baseline="bottom")
        rule = data.mark_rule(strokeDash=[4, 4], strokeWidth=1.2, color="#8a8f98")
        layers += [
            rule.encode(tooltip=[alt.Tooltip("model:N", title="reference"), share("strict", "strict match")]),
            label.encode(text="label:N", y=alt.value(0)),
        ]
    chart = alt.layer(*layers).properties(height=ROW_HEIGHT * len(styles), padding={"top": 4, "right": 12})
    said = "; ".join(f"{row['arm']} {100 * row['mean']:.1f}%" for row in means)
    return Chart(
        "accuracy",
        "Strict match",
        "Filled: mean over seeds with its 95% Wilson interval. Open: each seed. Dashed: the references.",
        finish(chart, f"Strict match per arm with 95% intervals. {said}"),
    )


def curve_chart(
    name: str,
    title: str,
    caption: str,
    report: Mapping[str, Any],
    *,
    stage: str,
    field: str,
    domain: tuple[float, float] | None = None,
) -> Chart | None:
    """One logged quantity against the optimizer step, a line per arm and seed; None where none was logged."""
    import altair as alt

    rows = [
        {"arm": row["arm"], "seed": row["seed"], "step": row["step"], "value": row[field]}
        for row in report["curves"]
        if row["stage"] == stage and row[field] is not None
    ]
    if not rows:
        return None
    styles = arm_styles(list(report["arms"]))
    y_scale = alt.Scale(zero=False, nice=True) if domain is None else alt.Scale(domain=list(domain))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickCount=5, format="d")),
        y=alt.Y("value:Q", title=None, scale=y_scale, axis=alt.Axis(tickCount=5)),
        color=_colour(styles),
        detail="seed:N",
    )
    dash_scale = alt.Scale(domain=list(styles), range=[style["dash"] for style in styles.values()])
    line = base.mark_line(strokeWidth=1.8, opacity=0.9).encode(
        strokeDash=alt.StrokeDash("arm:N", scale=dash_scale, legend=None)
    )
    near = alt.selection_point(
        name="near", on="pointerover", nearest=True, clear="pointerout", fields=["step"], empty=False
    )
    points = (
        base.mark_point(filled=True, size=44)
        .encode(
            opacity=alt.condition(near, alt.value(1), alt.value(0)),
            tooltip=[
                alt.Tooltip("arm:N", title="arm"),
                alt.Tooltip("seed:N", title="seed"),
                alt.Tooltip("step:Q", title="step"),
                alt.Tooltip("value:Q", title=title.lower(), format=".4~g"),
            ],
        )
        .add_params(near)
    )
    chart = alt.layer(line, points).properties(height=CURVE_HEIGHT)
    return Chart(name, title, caption, finish(chart, f"{title} against optimizer step. {caption}"))


def loss_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Cross entropy and KV loss of distillation, KV loss of pretraining; those that were logged."""
    charts = [
        curve_chart(
            "ce",
            "Cross entropy",
            "Distillation. The one loss that every arm shares, so the one to compare.",
            report,
            stage="distill",
            field="ce",
        ),
        curve_chart(
            "kv",
            "KV loss",
            "Distillation. Each arm's own KV loss, before its weight.",
            report,
            stage="distill",
            field="kv",
        ),
        curve_chart(
            "pretrain",
            "Projector loss",
            "Pretraining of the projector against the frozen student.",
            report,
            stage="pretrain",
            field="loss",
        ),
    ]
    return [chart for chart in charts if chart is not None]


def similarity_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Centred and raw cosine during distillation, on one scale."""
    fields = (
        ("cos_sim_centered", "Centred cosine", "Channel means removed: predicting the mean scores 0."),
        ("cos_sim", "Raw cosine", "Close to 1 for a constant prediction where keys are biased."),
    )
    values = [row[f] for row in report["curves"] for f, _, _ in fields if row["stage"] == "distill"]
    low = min([value for value in values if value is not None], default=0.0)
    domain = (max(-1.0, int(10 * low - 1) / 10), 1.0)
    charts = [
        curve_chart(field, title, caption, report, stage="distill", field=field, domain=domain)
        for field, title, caption in fields
    ]
    return [chart for chart in charts if chart is not None]
