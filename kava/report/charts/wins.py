"""The chart of paired wins and losses: questions that only one arm of a comparison answered right."""

from collections.abc import Sequence

import altair as alt

from kava.report.charts.style import GREY, Chart, Styles, colour_of, finish
from kava.report.statistics.compare import Comparison
from kava.report.verdict.findings import FEW

# Height of a row, and of the bar in it: of few comparisons, and of many.
ROW, BAR = 42, 15
ROW_OF_MANY, BAR_OF_MANY = 34, 11


def wins_chart(comparisons: Sequence[Comparison], styles: Styles) -> Chart | None:
    """A bar to each side per comparison, mean over seeds; None where there are no marks to compare.

    Parameters
    ----------
    comparisons
        In the order to show them.
    styles
        What `arm_styles` returned: each side of a bar has the colour of its arm.
    """
    rows = [row for row in comparisons if row.discordant]
    if not rows:
        return None
    row_height, bar_height = (ROW_OF_MANY, BAR_OF_MANY) if len(rows) > FEW else (ROW, BAR)
    below, above = row_height / 6, -row_height / 4
    names = [f"{row.a} − {row.b}" for row in rows]
    bars, reach, said = [], 0.0, []
    for name, row in zip(names, rows, strict=True):
        for side, (only, arm, sign) in enumerate((("first", row.a, 1), ("second", row.b, -1))):
            counts = [pair[side] for pair in row.discordant.values()]
            count = sum(counts) / len(counts)
            bar = {"comparison": name, "only": only, "arm": arm, "questions": sign * sum(counts) / len(counts)}
            bars.append(bar | {"count": count, "by_seed": ", ".join(str(count) for count in counts)})
            said.append(f"{name}: only {arm} {count:.1f}")
            reach = max(reach, count)
    reach = 1.12 * (reach or 1)
    x_scale = alt.Scale(domain=[-reach, reach], nice=False)
    x_axis = alt.Axis(title="← only the second arm right · only the first →", labelExpr="abs(datum.value)", tickCount=6)
    y_scale = alt.Scale(paddingInner=0.1, paddingOuter=0)
    y = alt.Y("comparison:N", sort=names, title=None, axis=None, scale=y_scale)
    table = alt.Chart(alt.Data(values=bars)).encode(y=y, x=alt.X("questions:Q", scale=x_scale, axis=x_axis))
    bar_marks = table.mark_bar(height=bar_height, yOffset=below).encode(
        color=colour_of(styles),
        tooltip=[
            alt.Tooltip("comparison:N", title="comparison"),
            alt.Tooltip("arm:N", title="only right"),
            alt.Tooltip("count:Q", title="questions, mean", format=".1~f"),
            alt.Tooltip("by_seed:N", title="by seed"),
        ],
    )
    count_style = {"fontSize": 12, "yOffset": below, "baseline": "middle"}
    first, second = (table.transform_filter(f"datum.only == '{side}'") for side in ("first", "second"))
    text = alt.Text("count:Q", format=".1~f")
    labels = [
        first.mark_text(align="left", dx=4, **count_style).encode(text=text),
        second.mark_text(align="right", dx=-4, **count_style).encode(text=text),
        # Names stand above their bars: beside them they would leave a phone no room.
        first.mark_text(align="left", fontSize=13, yOffset=above, baseline="middle").encode(
            text="comparison:N", x=alt.value(0)
        ),
    ]
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=GREY).encode(x="zero:Q")
    chart = alt.layer(bar_marks, zero, *labels).properties(height=row_height * len(rows))
    return Chart(
        "wins",
        "Paired wins and losses",
        "Questions that only one of the two arms answered right, mean over their common seeds; to the right the first "
        "arm’s, to the left the second’s. Questions that both or neither answered right are left out.",
        finish(chart, f"Questions that only one arm answered right. {'; '.join(said)}"),
    )
