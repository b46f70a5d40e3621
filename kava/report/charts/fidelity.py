"""The chart of size against fidelity: a point per codec, bounds as lines."""

import altair as alt

from kava.report.build import Report
from kava.report.charts.style import CURVE_HEIGHT, GREY, PALETTE, Chart, finish

SIZES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
BOUNDS = ["Gaussian bound", "first layer known"]


def fidelity_chart(report: Report) -> Chart | None:
    """Size of the store against what is lost of the KV, a point per codec, bounds as lines; None unless measured."""
    measured = report.fidelity.codecs if report.fidelity else {}
    lossy = {name: row for name, row in measured.items() if row.loss}
    if not lossy:
        return None
    rows = [
        {"codec": name, "which": "configured" if row.configured else "other"}
        | {"ratio": row.ratio, "loss": row.loss, "cos_centered": row.cos_centered}
        for name, row in lossy.items()
    ]
    gaussian = [(BOUNDS[0], row.bound, row.loss) for row in lossy.values()]
    known = [(BOUNDS[1], row.bound_first_layer_known, row.loss) for row in lossy.values()]
    bounds = [{"bound": name, "ratio": ratio, "loss": loss} for name, ratio, loss in gaussian + known if ratio]
    x = alt.X(
        "ratio:Q",
        title="size over raw bf16",
        scale=alt.Scale(type="log", nice=False, padding=24),
        axis=alt.Axis(format="~%", values=SIZES),
    )
    y = alt.Y(
        "loss:Q",
        title="1 − centred cosine",
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format="~e", values=[10.0**-k for k in range(9)]),
    )
    dashes = alt.Scale(domain=BOUNDS, range=[[1, 0], [4, 4]])
    line = (
        alt.Chart(alt.Data(values=bounds))
        .mark_line(strokeWidth=1.4, color=GREY)
        .encode(x=x, y=y, strokeDash=alt.StrokeDash("bound:N", scale=dashes, legend=None))
    )
    tooltip = [
        alt.Tooltip("codec:N", title="codec"),
        alt.Tooltip("ratio:Q", title="size over bf16", format=".4f"),
        alt.Tooltip("cos_centered:Q", title="centred cosine", format=".6f"),
    ]
    points = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, tooltip=tooltip)
    fill = alt.Scale(domain=["configured", "other"], range=[PALETTE[0], "transparent"])
    mark = points.mark_point(size=90, strokeWidth=1.8, color=PALETTE[0]).encode(
        fill=alt.Fill("which:N", scale=fill, legend=None)
    )
    label = points.mark_text(align="left", dx=8, dy=-9, fontSize=12).encode(text="codec:N")
    chart = alt.layer(line, mark, label).properties(height=CURVE_HEIGHT + 90)
    said = "; ".join(f"{name} {100 * row.ratio:.1f}% at {row.cos_centered:.4f}" for name, row in lossy.items())
    exact = [name for name, row in measured.items() if row.cos_centered is not None and not row.loss]
    left_out = f" Lossless here, so not on this scale: {', '.join(exact)}." if exact else ""
    return Chart(
        "fidelity",
        "Size against fidelity",
        "Both axes logarithmic; further left is smaller, further down more faithful. Filled: this run’s codec."
        + (" Lines: the bound of a Gaussian; dashed, with the first layer known." if bounds else "")
        + left_out,
        finish(chart, f"Size over bf16 and centred cosine of each codec. {said}"),
    )
