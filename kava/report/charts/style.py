"""What the charts share: colours, dashes, and the order and choice of arms; the page's style sheet colours text.

Arms are told apart by colour (Okabe and Ito, "Color universal design", 2008) and by dash pattern, so that
the curves survive colour blindness and grey print. Text and axis colours are left to CSS, which overrides
the SVG's own attributes and so follows the reader's light or dark scheme and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from kava.report.build import Report

# The six of the eight that show on white and on black (no black, no yellow), strongest contrast first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 3), (9, 3, 2, 3), (5, 2), (12, 4))
CONTROL_GREY = "#767b84"
GREY = "#8a8f98"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
CURVE_HEIGHT = 210
FEW_ARMS = 8
HIGHLIGHTED = 4
# The name under which the page's script finds the chosen arms in every chart.
CHOICE = "highlighted"


@dataclass(frozen=True)
class Chart:
    """One chart: `name` is its id in the page, `spec` is Vega-Lite."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Style:
    """Colour and dash pattern (SVG stroke-dasharray) of an arm or another series."""

    colour: str
    dash: list[int]


Styles = Mapping[str, Style]


def many_arms(report: Report) -> bool:
    """Whether there are more arms than colours and lines keep apart at one glance."""
    return len(report.arms) > FEW_ARMS


def best_first(report: Report, names: Sequence[str]) -> list[str]:
    """Arms by the primary metric; those without a mean last."""
    means = {name: report.arms[name].primary.mean for name in names}
    sign = report.metrics[0].sign
    return sorted(names, key=lambda name: (means[name] is None, -sign * (means[name] or 0.0)))


def ranked(report: Report) -> list[str]:
    """Arms in the order shown: as configured if few; if many, KV arms, best first, then controls."""
    if not many_arms(report):
        return list(report.arms)
    return sorted(best_first(report, list(report.arms)), key=lambda name: name in report.controls)


def highlighted(report: Report) -> list[str]:
    """Arms that curves show in colour at first: all if few; if many, the controls and the best KV arms."""
    names = ranked(report)
    if not many_arms(report):
        return names
    controls = [name for name in names if name in report.controls]
    return [name for name in names if name not in controls][:HIGHLIGHTED] + controls


def arm_styles(report: Report) -> dict[str, Style]:
    """By arm, the same in all charts and legends.

    Each further round of the colours shifts the dashes by one, so that no pair repeats within 36 arms. Among many
    arms the controls are grey, and the best KV arms differ in colour.
    """
    grey = [name for name in report.arms if many_arms(report) and name in report.controls]
    styles = series_styles([name for name in ranked(report) if name not in grey])
    styles |= {name: Style(CONTROL_GREY, _dash(i + 1)) for i, name in enumerate(grey)}
    return {name: styles[name] for name in report.arms}


def series_styles(names: Sequence[str]) -> dict[str, Style]:
    """By name, in the order of the palette."""
    return {name: Style(PALETTE[i % len(PALETTE)], _dash(i + i // len(PALETTE))) for i, name in enumerate(names)}


def _dash(number: int) -> list[int]:
    return list(DASHES[number % len(DASHES)])


def colour_of(styles: Styles) -> alt.Color:
    """The encoding of arms by colour."""
    scale = alt.Scale(domain=list(styles), range=[style.colour for style in styles.values()])
    return alt.Color("arm:N", scale=scale, legend=None)


def dash_of(styles: Styles) -> alt.StrokeDash:
    """The encoding of arms by dash pattern."""
    scale = alt.Scale(domain=list(styles), range=[style.dash for style in styles.values()])
    return alt.StrokeDash("arm:N", scale=scale, legend=None)


def finish(chart: alt.TopLevelMixin, description: str) -> dict[str, Any]:
    """The chart's specification, as wide as its place in the page."""
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
