"""The chart of size against fidelity: a point per codec, bounds as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kava.report.charts import CURVE_HEIGHT, PALETTE, Chart, finish


def fidelity_chart(report: Mapping[str, Any]) -> Chart | None:
    """Size of the store against what is lost of the KV, a point per codec, bounds as lines; None unless measured."""
    import altair as alt

    measured = report["fidelity"]
    if not measured:
        return None
    rows = [
        {"codec": name, "which": "configured" if row["configured"] else "other"}
        | {field: row[field] for field in ("ratio", "loss", "cos_centered")}
        for name, row in measured["codecs"].items()
        if row["loss"]
    ]
    titles = ("Gaussian bound", "first layer known")
    bounds = [
        {"bound": title, "ratio": row[field], "loss": row["loss"]}
        for field, title in zip(("bound", "bound_first_layer_known"), titles, strict=True)
        for row in measured["codecs"].values()
        if row["loss"] and row[field]
    ]
    if not rows:
        return None
    x = alt.X(
        "ratio:Q",
        title="size over raw bf16",
        scale=alt.Scale(type="log", nice=False, padding=24),
        axis=alt.Axis(format="~%", values=[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]),
    )
    y = alt.Y(
        "loss:Q",
        title="1 − centred cosine",
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format="~e", values=[10.0**-k for k in range(9)]),
    )
    line = (
        alt.Chart(alt.Data(values=bounds))
        .mark_line(strokeWidth=1.4, color="#8a8f98")
        .encode(
            x=x,
            y=y,
            strokeDash=alt.StrokeDash(
                "bound:N",
                scale=alt.Scale(domain=list(titles), range=[[1, 0], [4, 4]]),
                legend=None,
            ),
        )
    )
    points = alt.Chart(alt.Data(values=rows)).encode(
        x=x,
        y=y,
        tooltip=[
            alt.Tooltip("codec:N", title="codec"),
            alt.Tooltip("ratio:Q", title="size over bf16", format=".4f"),
            alt.Tooltip("cos_centered:Q", title="centred cosine", format=".6f"),
        ],
    )
    mark = points.mark_point(size=90, strokeWidth=1.8, color=PALETTE[0]).encode(
        fill=alt.Fill(
            "which:N",
            scale=alt.Scale(domain=["configured", "other"], range=[PALETTE[0], "transparent"]),
            legend=None,
        )
    )
    label = points.mark_text(align="left", dx=8, dy=-9, fontSize=12).encode(text="codec:N")
    chart = alt.layer(line, mark, label).properties(height=CURVE_HEIGHT + 90)
    said = "; ".join(f"{row['codec']} {100 * row['ratio']:.1f}% at {row['cos_centered']:.4f}" for row in rows)
    exact = [name for name, row in measured["codecs"].items() if row["cos_centered"] is not None and not row["loss"]]
    left_out = f" Lossless here, so not on this scale: {', '.join(exact)}." if exact else ""
    return Chart(
        "fidelity",
        "Size against fidelity",
        "Both axes logarithmic; further left is smaller, further down more faithful. Filled: this run’s codec."
        + (" Lines: the bound of a Gaussian; dashed, with the first layer known." if bounds else "")
        + left_out,
        finish(chart, f"Size over bf16 and centred cosine of each codec. {said}"),
    )
