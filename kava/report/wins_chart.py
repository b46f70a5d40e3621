"""The chart of paired wins and losses: questions that only one arm of a comparison answered right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.report.charts import Chart, colour_of, finish
from kava.report.shown import FEW

# Height of a row, and of the bar in it: of few comparisons, and of many.
ROW, BAR = 42, 15
ROW_OF_MANY, BAR_OF_MANY = 34, 11


def wins_chart(comparisons: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """A bar to each side per comparison, mean over seeds; None where no comparison could be made.

    Parameters
    ----------
    comparisons
        Rows of `comparisons` in the order to show them; `discordant` holds seed → (only a right, only b right).
    styles
        What `arm_styles` returned: each side of a bar has the colour of its arm.
    """
    import altair as alt

    rows = [row for row in comparisons if row["discordant"]]
    if not rows:
        return None
    row_height, bar_height = (ROW_OF_MANY, BAR_OF_MANY) if len(rows) > FEW else (ROW, BAR)
    below, above = row_height / 6, -row_height / 4
    bars = []
    for row in rows:
        name = f"{row['a']} − {row['b']}"
        for side, sign in (("first", 1), ("second", -1)):
            counts = [pair[side == "second"] for pair in row["discordant"].values()]
            bars.append(
                {
                    "comparison": name,
                    "only": side,
                    "arm": row["a"] if side == "first" else row["b"],
                    "questions": sign * sum(counts) / len(counts),
                    "count": sum(counts) / len(counts),
                    "by_seed": ", ".join(str(count) for count in counts),
                }
            )
    reach = max(bar["count"] for bar in bars) or 1
    x_scale = alt.Scale(domain=[-1.12 * reach, 1.12 * reach], nice=False)
    x_axis = alt.Axis(title="← only the second arm right · only the first →", labelExpr="abs(datum.value)", tickCount=6)
    y = alt.Y(
        "comparison:N",
        sort=[f"{row['a']} − {row['b']}" for row in rows],
        title=None,
        axis=None,
        scale=alt.Scale(paddingInner=0.1, paddingOuter=0),
    )
    table = alt.Chart(alt.Data(values=bars)).encode(y=y, x=alt.X("questions:Q", scale=x_scale, axis=x_axis))
    bar = table.mark_bar(height=bar_height, yOffset=below).encode(
        color=colour_of(styles),
        tooltip=[
            alt.Tooltip("comparison:N", title="comparison"),
            alt.Tooltip("arm:N", title="only right"),
            alt.Tooltip("count:Q", title="questions, mean", format=".1~f"),
            alt.Tooltip("by_seed:N", title="by seed"),
        ],
    )
    count = {"fontSize": 12, "yOffset": below, "baseline": "middle"}
    first, second = (table.transform_filter(f"datum.only == '{side}'") for side in ("first", "second"))
    text = alt.Text("count:Q", format=".1~f")
    labels = [
        first.mark_text(align="left", dx=4, **count).encode(text=text),
        second.mark_text(align="right", dx=-4, **count).encode(text=text),
        # Names stand above their bars: beside them they would leave a phone no room.
        first.mark_text(align="left", fontSize=13, yOffset=above, baseline="middle").encode(
            text="comparison:N", x=alt.value(0)
        ),
    ]
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color="#8a8f98").encode(x="zero:Q")
    chart = alt.layer(bar, zero, *labels).properties(height=row_height * len(rows))
    said = "; ".join(f"{bar['comparison']}: only {bar['arm']} {bar['count']:.1f}" for bar in bars)
    return Chart(
        "wins",
        "Paired wins and losses",
        "Questions that only one of the two arms answered right, mean over their common seeds; to the right the first "
        "arm’s, to the left the second’s. Questions that both or neither answered right are left out.",
        finish(chart, f"Questions that only one arm answered right. {said}"),
    )
