"""A profile as one self-contained page: no script, charts and heat maps drawn before it is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kava.kv import TENSORS
from kava.profile.show import LEGEND, better, layers, mean_of_known, reach, sentences, tables
from kava.report import page as report_page
from kava.report.charts.style import finish, series_styles
from kava.report.page.heatmap import heat_map

WIDTH, HEIGHT = 420, 210
HERE = Path(__file__).parent
STYLE = Path(report_page.__file__).with_name("page.css")


def page(profile: Mapping[str, Any]) -> str:
    """The page of what `kava.profile.measure` returned and `kava profile` named."""
    pair = profile["pair"]
    sections = [
        _section(
            "What can be predicted",
            f"A raw cosine means something between the score of a constant and 1. {reach(profile)}",
            charts=[_explained(pair), _cosines(pair)],
        ),
        _section(
            "Floor",
            "Raw cosine of predicting the mean of each head, a student layer per column.",
            maps=[_by_head(pair[name]["cos_sim_constant"], name, 1.0, 2) for name in TENSORS],
        ),
        _section(
            "Layers that are alike",
            "Debiased linear CKA: a student layer per row, a teacher layer per column.",
            maps=[_cka(pair[name]["cka"], name) for name in TENSORS],
        ),
        *(_model(profile, role) for role in ("teacher", "student")),
    ]
    environment = Environment(
        loader=FileSystemLoader([HERE, STYLE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("profile.html.j2").render(
        p=profile,
        sections=sections,
        sentences=sentences(profile),
        legend=LEGEND,
        tables=tables(profile),
        style=Markup(STYLE.read_text(encoding="utf-8")),
    )


def _section(title: str, text: str, charts: Sequence[Any] = (), maps: Sequence[Markup] = ()) -> dict[str, Any]:
    return {"title": title, "text": text, "charts": charts, "maps": maps}


def _model(profile: Mapping[str, Any], role: str) -> dict[str, Any]:
    maps = []
    for field, what in (("norm", "mean norm"), ("bias_share", "bias share")):
        for name in TENSORS:
            values = profile[role][name][field]
            top = 1.0 if field == "bias_share" else max(value for row in values for value in row) or 1.0
            maps.append(_by_head(values, f"{name}, {what}", top, 2 if top < 10 else 1 if top < 100 else 0))
    text = "Norms, and the share of the squared norm that is a constant bias; a layer per column."
    return _section(role.capitalize(), text, maps=maps)


def _by_head(values_LH: Sequence[Sequence[float | None]], title: str, high: float, digits: int) -> Markup:
    rows = [f"head {head}" for head in range(len(values_LH[0]))]
    columns = [str(layer) for layer in range(len(values_LH))]
    by_head = [list(row) for row in zip(*values_LH, strict=True)]
    return Markup(heat_map(by_head, rows, columns, title[:1].upper() + title[1:], 0.0, high, digits))


def _cka(values: Sequence[Sequence[float]], name: str) -> Markup:
    rows, columns = ([str(i) for i in range(count)] for count in (len(values), len(values[0])))
    return Markup(heat_map([list(row) for row in values], rows, columns, name.capitalize(), 0.0, 1.0, 2))


def _explained(pair: Mapping[str, Any]) -> dict[str, Any]:
    probes = (("all_layers", "all teacher layers"), ("one_layer", "the one at the ratio of depth"))
    series = {
        f"{name}, {what}": [mean_of_known(row) for row in pair[name][probe]["r2"]]
        for name in TENSORS
        for probe, what in probes
    }
    caption = "Share of the base student’s variance that a ridge regression predicts on examples it was not fitted on."
    return _lines("r2 of a linear map", caption, series)


def _cosines(pair: Mapping[str, Any]) -> dict[str, Any]:
    series = {}
    for name in TENSORS:
        series[f"{name}, ridge regression"] = better(pair[name], "cos_sim")
        series[f"{name}, a constant"] = [mean_of_known(row) for row in pair[name]["cos_sim_constant"]]
    assert all(len(values) == layers(pair["keys"]) for values in series.values())
    caption = "What predicting the mean scores, and what the better ridge regression does."
    return _lines("Raw cosine", caption, series)


def _lines(title: str, caption: str, series: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """One line per series against the student's layer, as static SVG."""
    styles = series_styles(list(series))
    rows = [
        {"series": of, "layer": layer, "value": value}
        for of, values in series.items()
        for layer, value in enumerate(values)
        if value is not None
    ]
    low = min([0.0, *(value for values in series.values() for value in values if value is not None)])
    colour = alt.Scale(domain=list(styles), range=[style.colour for style in styles.values()])
    dash = alt.Scale(domain=list(styles), range=[style.dash for style in styles.values()])
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("layer:O", title="student layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(domain=[low, 1.0]), axis=alt.Axis(tickCount=5)),
        color=alt.Color("series:N", scale=colour, legend=None),
    )
    line = base.mark_line(strokeWidth=1.8).encode(strokeDash=alt.StrokeDash("series:N", scale=dash, legend=None))
    chart = alt.layer(line, base.mark_point(filled=True, size=36)).properties(height=HEIGHT)
    spec = finish(chart, f"{title} per student layer. {caption}") | {"width": WIDTH}
    return {"title": title, "caption": caption, "svg": Markup(vl_convert.vegalite_to_svg(spec)), "styles": styles}
