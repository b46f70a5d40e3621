"""Lines of arms over steps or seconds: the mean over seeds with their range, or each seed, or those that are chosen.

An arm is its mean over seeds with their range as a band; where there is one seed, its line. Of few arms the seeds are
thin lines as well. Of many, those picked in the legend stand out in colour, and the others stay as thin grey lines.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from kava.report.build import Report
from kava.report.charts.style import CHOICE, GREY, arm_styles, colour_of, dash_of, highlighted, many_arms

# Step → value of one run, and arm → seed → such a line.
Line = Mapping[int, float]
Lines = Mapping[str, Mapping[str, Line]]


class Axes(NamedTuple):
    """What the layers of one chart share.

    Attributes
    ----------
    title
        Of the quantity, in a tooltip.
    report
        Whose arms are drawn.
    x, y_scale, y_format
        Of the axes.
    written
        How a number is written in a tooltip.
    further
        What rows hold at each point beside step and value.
    points
        Whether the points are so few that each is marked.
    """

    title: str
    report: Report
    x: alt.X
    y_scale: alt.Scale
    y_format: str = "~g"
    written: str = ".4~g"
    further: tuple[str, ...] = ()
    points: bool = False

    def y(self, field: str) -> alt.Y:
        axis = alt.Axis(tickCount=5, format=self.y_format)
        return alt.Y(f"{field}:Q", title=None, scale=self.y_scale, axis=axis)

    def line(self, base: alt.Chart, width: float, opacity: float = 1) -> alt.Chart:
        points = {"point": alt.OverlayMarkDef(size=26)} if self.points else {}
        return base.mark_line(strokeWidth=width, opacity=opacity, clip=True, **points)

    @property
    def colour(self) -> alt.Color:
        return colour_of(arm_styles(self.report))


def drawn(
    axes: Axes, lines: Lines, partial: Sequence[str], several: bool
) -> tuple[alt.LayerChart, dict[str, list[dict[str, Any]]], str]:
    """The chart, its rows by name, and how arms without a mean are told of.

    The rows are put in at the end, since Altair would copy them for every step of making a chart.

    Parameters
    ----------
    axes, lines
        What to draw.
    partial
        Arms of which a mean over seeds is not known.
    several
        Whether arms have several seeds.
    """
    seeds = {"seeds": seed_rows(lines)}
    means = {"means": [mean_row(arm, list(of.values())) for arm, of in lines.items() if arm not in partial]}
    if many_arms(axes.report):
        return _many(axes), means, "Left out"
    if several:
        return _means(axes), seeds | means, "Without a mean"
    return _seeds(axes), seeds, ""


def seed_rows(runs: Lines) -> list[dict[str, Any]]:
    """A row per line with lists as its cells, taken apart by the chart: a tenth of the bytes of a row per point."""
    return [
        {"arm": arm, "seed": seed, "step": list(line), "value": list(line.values())}
        for arm, seeds in runs.items()
        for seed, line in seeds.items()
    ]


def mean_row(arm: str, seeds: list[Line]) -> dict[str, Any]:
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
    table = alt.Chart(alt.NamedData(name="seeds")).transform_flatten(["step", "value", *axes.further])
    return table.encode(x=axes.x, y=axes.y("value"), color=axes.colour, detail="seed:N")


def _mean_lines(axes: Axes) -> alt.Chart:
    table = alt.Chart(alt.NamedData(name="means")).transform_flatten(["step", "value", "low", "high", *axes.further])
    return table.encode(x=axes.x, y=axes.y("value"), detail="arm:N")


def _seeds(axes: Axes) -> alt.LayerChart:
    base = _seed_lines(axes)
    line = axes.line(base, 1.8, 0.9).encode(strokeDash=dash_of(arm_styles(axes.report)))
    return alt.layer(line, _points(axes, base, ["step"], alt.Tooltip("seed:N", title="seed")))


def _means(axes: Axes) -> alt.LayerChart:
    """Every seed as a thin line, and the mean and range of those arms whose seeds all logged the quantity."""
    thin = _seed_lines(axes).mark_line(strokeWidth=0.7, opacity=0.45, clip=True)
    base = _mean_lines(axes)
    return alt.layer(thin, *_with_band(axes, base.encode(color=axes.colour)), _mean_points(axes, base))


def _many(axes: Axes) -> alt.LayerChart:
    chosen = alt.param(name=CHOICE, value=highlighted(axes.report))
    base = _mean_lines(axes)
    context = base.mark_line(strokeWidth=1, opacity=0.45, color=GREY, clip=True)
    in_colour = base.transform_filter(f"indexof({CHOICE}, datum.arm) >= 0").encode(color=axes.colour)
    return alt.layer(context, *_with_band(axes, in_colour), _mean_points(axes, base)).add_params(chosen)


def _with_band(axes: Axes, coloured: alt.Chart) -> list[alt.Chart]:
    band = coloured.mark_area(opacity=0.14, line=False, clip=True).encode(y=axes.y("low"), y2="high:Q")
    return [band, axes.line(coloured, 2.2).encode(strokeDash=dash_of(arm_styles(axes.report)))]


def _mean_points(axes: Axes, base: alt.Chart) -> alt.Chart:
    spread = [alt.Tooltip(f"{edge}:Q", title=f"{edge}est seed", format=axes.written) for edge in ("low", "high")]
    return _points(axes, base.encode(color=axes.colour), ["step", "arm"], *spread)


def _points(axes: Axes, base: alt.Chart, near_by: list[str], *further: alt.Tooltip) -> alt.Chart:
    """Points that show where the pointer is near, and only there."""
    near = alt.selection_point(
        name="near", on="pointerover", nearest=True, clear="pointerout", fields=near_by, empty=False
    )
    value = alt.Tooltip("value:Q", title=axes.title, format=axes.written)
    tooltip = [alt.Tooltip("arm:N", title="arm"), alt.Tooltip("step:Q", title="step"), value, *further]
    shown = alt.condition(near, alt.value(1), alt.value(0))
    return base.mark_point(filled=True, size=44, clip=True).encode(opacity=shown, tooltip=tooltip).add_params(near)
