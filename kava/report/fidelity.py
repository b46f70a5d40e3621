"""What each codec costs and gives back, from the file of `kava bench store`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.report.clean import Row
from kava.report.reading import read_json


@dataclass(frozen=True)
class Codec(Row):
    """One codec, measured on the run's teacher.

    Attributes
    ----------
    ratio, bits_per_value
        Size over raw bf16, and in bits.
    decode_mb_s, read_mb_s
        Speeds.
    cos, cos_centered, cos_centered_min
        Means of K and V, and the worst; None where they are not known.
    loss
        1 − centred cosine; None where nothing is lost or it is not known.
    bound, bound_first_layer_known
        Ratio that a Gaussian of this loss needs.
    configured
        Whether the run's store has it.
    """

    ratio: float
    bits_per_value: float
    decode_mb_s: float | None
    read_mb_s: float | None
    cos: float | None
    cos_centered: float | None
    cos_centered_min: float | None
    loss: float | None
    bound: float | None
    bound_first_layer_known: float | None
    configured: bool


@dataclass(frozen=True)
class Fidelity(Row):
    """The codecs, largest first, and what else was measured; `skipped` is what could not be, and why."""

    file: str
    tokens: int
    codecs: Mapping[str, Codec]
    formats: Mapping[str, Mapping[str, Any]]
    skipped: Mapping[str, str]


def read_fidelity(path: Path, own: Sequence[Mapping[str, Any]], lost: list[str]) -> Fidelity:
    """Read the file.

    Parameters
    ----------
    path
        The file.
    own
        Codecs of the run's own stores, which are marked as configured.
    lost
        Receives where numbers were not finite.
    """
    figures = read_json(path, lost)
    bounds = figures["rate_distortion_bound"]
    configured = [{name: value for name, value in codec.items() if name != "bits_per_value"} for codec in own]
    largest_first = sorted(figures["codecs"].items(), key=lambda item: -item[1]["ratio"])
    return Fidelity(
        path.as_posix(),
        figures["setup"]["tokens"],
        {name: _codec(row, bounds.get(name) or {}, row["codec"] in configured) for name, row in largest_first},
        figures["alternatives"],
        figures["skipped"],
    )


def _codec(row: Mapping[str, Any], bound: Mapping[str, Any], configured: bool) -> Codec:
    exact = row["k_rel_error"] == row["v_rel_error"] == 0
    centered = _of_both(row, "cos_centered_mean")
    worst = [row[f"{tensor}_cos_centered_min"] for tensor in "kv"]
    return Codec(
        **{name: row[name] for name in ("ratio", "bits_per_value", "decode_mb_s", "read_mb_s")},
        cos=_of_both(row, "cos_mean"),
        cos_centered=centered,
        cos_centered_min=None if None in worst else min(worst),
        # A cosine of 1 may be rounded to less; an exact codec loses nothing.
        loss=None if exact or centered is None or centered >= 1 else 1 - centered,
        bound=bound.get("ratio"),
        bound_first_layer_known=bound.get("ratio_first_layer_known"),
        configured=configured,
    )


def _of_both(row: Mapping[str, Any], figure: str) -> float | None:
    """Mean of K and V."""
    keys, values = row[f"k_{figure}"], row[f"v_{figure}"]
    return None if keys is None or values is None else (keys + values) / 2
