"""What each codec costs and gives back, from the file of `kava bench store`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kava.report.read import read_json


def read_fidelity(path: Path, stores: Sequence[Mapping[str, Any]], lost: list[str]) -> dict[str, Any]:
    """Rows of codecs and of other formats.

    Parameters
    ----------
    path
        The file.
    stores
        Manifests of the run's own stores; their codecs are marked as configured.
    lost
        Receives where numbers were not finite.
    """
    figures = read_json(path, lost)
    largest_first = sorted(figures["codecs"].items(), key=lambda item: -item[1]["ratio"])
    own = [{name: value for name, value in store["codec"].items() if name != "bits_per_value"} for store in stores]
    return {
        "file": path.as_posix(),
        "tokens": figures["setup"]["tokens"],
        "codecs": {
            name: _row(row, figures["rate_distortion_bound"].get(name) or {}) | {"configured": row["codec"] in own}
            for name, row in largest_first
        },
        "formats": figures["alternatives"],
        "skipped": figures["skipped"],
    }


def _row(row: Mapping[str, Any], bound: Mapping[str, Any]) -> dict[str, Any]:
    exact = row["k_rel_error"] == row["v_rel_error"] == 0
    cos, centered = _of_both(row, "cos_mean"), _of_both(row, "cos_centered_mean")
    worst = [row[f"{tensor}_cos_centered_min"] for tensor in "kv"]
    return {
        **{name: row[name] for name in ("ratio", "bits_per_value", "decode_mb_s", "read_mb_s")},
        "cos": cos,
        "cos_centered": centered,
        "cos_centered_min": None if None in worst else min(worst),
        # A cosine of 1 may be rounded to less; an exact codec loses nothing.
        "loss": None if exact or centered is None or centered >= 1 else 1 - centered,
        "bound": bound.get("ratio"),
        "bound_first_layer_known": bound.get("ratio_first_layer_known"),
    }


def _of_both(row: Mapping[str, Any], figure: str) -> float | None:
    """Mean of K and V."""
    keys, values = row[f"k_{figure}"], row[f"v_{figure}"]
    return None if keys is None or values is None else (keys + values) / 2
