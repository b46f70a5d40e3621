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
CONTROL_GREY = "#767b84"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
CURVE_HEIGHT = 210
ROW_HEIGHT = 46
ROW_HEIGHT_MANY = 30
FEW_ARMS = 8
HIGHLIGHTED = 4


@dataclass(frozen=True)
class Chart:
    """One chart: `name` is its id in the page, `spec` is Vega-Lite."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]


def many_arms(report: Mapping[str, Any]) -> bool:
    """Whether there are more arms than colours and lines keep apart at one glance."""
    return len(report["arms"]) > FEW_ARMS


def ranked(report: Mapping[str, Any]) -> list[str]:
    """Arms in the order shown: as configured if few; if many, KV arms by strict match, then controls."""
    arms = report["arms"]
    if not many_arms(report):
        return list(arms)
    return sorted(arms, key=lambda name: (name in report["controls"], -(arms[name]["strict_match_mean"] or 0.0)))


def highlighted(report: Mapping[str, Any]) -> list[str]:
    """Arms that curves show in colour at first: all if few; if many, the controls and the best KV arms."""
    names = ranked(report)
    if not many_arms(report):
        return names
    controls = [name for name in names if name in report["controls"]]
    return [name for name in names if name not in controls][:HIGHLIGHTED] + controls


def arm_styles(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm → `colour` and `dash` (SVG stroke-dasharray), the same in all charts and legends.

    Each further round of the colours shifts the dashes by one, so that no pair repeats within 36 arms. Among many
    arms the controls are grey, and the best KV arms differ in colour.
    """
    arms = list(report["arms"])
    grey = [name for name in arms if many_arms(report) and name in report["controls"]]
    coloured = [name for name in ranked(report) if name not in grey]
    styles = series_styles(coloured)
    styles |= {name: _style(CONTROL_GREY, i + 1) for i, name in enumerate(grey)}
    return {name: styles[name] for name in arms}


def series_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name → `colour` and `dash`, in the order of the palette."""
    return {name: _style(PALETTE[i % len(PALETTE)], i + i // len(PALETTE)) for i, name in enumerate(names)}


def _style(colour: str, dash: int) -> dict[str, Any]:
    return {"colour": colour, "dash": list(DASHES[dash % len(DASHES)])}


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


def colour_of(styles: Mapping[str, Mapping[str, Any]]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(styles), range=[style["colour"] for style in styles.values()])
    return alt.Color("arm:N", scale=scale, legend=None)


def accuracy_chart(report: Mapping[str, Any]) -> Chart:
    """Strict match per arm: mean with its interval, one open circle per seed, teacher and base as lines."""
    import altair as alt

    styles, order = arm_styles(report), ranked(report)
    means, seeds = [], []
    for name in order:
        arm = report["arms"][name]
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
        sort=order,
        title=None,
        axis=alt.Axis(labelFontSize=13, labelLimit=150, labelPadding=14, labelOverlap=False),
    )
    colour = colour_of(styles)

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
        .mark_point(filled=False, size=42, strokeWidth=1.4, yOffset=9 if many_arms(report) else 13)
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
    row_height = ROW_HEIGHT_MANY if many_arms(report) else ROW_HEIGHT
    chart = alt.layer(*layers).properties(height=row_height * len(styles), padding={"top": 4, "right": 12})
    said = "; ".join(f"{row['arm']} {100 * row['mean']:.1f}%" for row in means)
    return Chart(
        "accuracy",
        "Strict match",
        "Filled: mean over seeds with its 95% Wilson interval. Open: each seed. Dashed: the references.",
        finish(chart, f"Strict match per arm with 95% intervals. {said}"),
    )
