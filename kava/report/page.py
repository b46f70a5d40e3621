"""The page: a template filled with the report's numbers, its charts and the chart library, in one file."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kava.report import format as formats
from kava.report.charts import accuracy_chart, arm_styles, loss_charts, similarity_charts
from kava.report.clean import flatten
from kava.report.fidelity_chart import fidelity_chart
from kava.report.shown import winner_of

HERE = Path(__file__).parent
# Longer answers are folded: a summary of this many characters, the rest on demand.
FOLD = 420


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed in one script, safe to stand inside a script element."""
    import vl_convert

    # Inside strings and regular expressions, where these occur, the backslash changes nothing.
    return re.sub(
        r"<(?=/script|!--|script)",
        r"\\x3c",
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        flags=re.IGNORECASE,
    )


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _against_controls(report: Mapping[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """Arm → (control, arm − control) for each declared comparison with a control."""
    table: dict[str, list[tuple[str, float]]] = {name: [] for name in report["arms"]}
    for row in report["comparisons"]:
        for name, other, sign in ((row["a"], row["b"], 1), (row["b"], row["a"], -1)):
            is_control = other in report["controls"] and name not in report["controls"]
            if is_control and row["delta"] is not None:
                table[name].append((other, sign * row["delta"]))
    return table


def render_html(report: Mapping[str, Any]) -> str:
    """One self-contained HTML page.

    Parameters
    ----------
    report : mapping
        What `build_report` returned, or the same read back from `ab_report.json`.

    Returns
    -------
    str
        The page. It loads nothing: scripts, styles and data stand inside it, and its content security policy
        allows its own two scripts, by hash, and no connection, so that nothing a model wrote can run.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "number",
        "integer",
        "percent",
        "interval",
        "points",
        "probability",
        "duration",
        "mebibytes",
        "size",
    ):
        environment.filters[name] = getattr(formats, name)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    library = _library()
    return environment.get_template("page.html.j2").render(
        r=report,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        library=Markup(library),
        script=Markup(script),
        script_hashes=f"{_hash(library)} {_hash(script)}",
        accuracy=accuracy_chart(report),
        losses=loss_charts(report),
        similarities=similarity_charts(report),
        fidelity=fidelity_chart(report),
        styles=arm_styles(list(report["arms"])),
        against_controls=_against_controls(report),
        winners=[winner_of(row) for row in report["comparisons"]],
        configuration=yaml.safe_dump(report["configuration"], sort_keys=False, allow_unicode=True, width=100),
        provenance=flatten(report["provenance"]),
        fold=FOLD,
    )
