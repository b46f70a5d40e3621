"""Every codec, alternative and bound over one source: the figures as JSON values, and as a table."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kava.bench.alternatives import measure_alternatives
from kava.bench.bound import Bound
from kava.bench.codecs import Measured, measure_codec
from kava.bench.search import as_faithful_as
from kava.bench.setting import PACKAGES
from kava.bench.source import Source
from kava.config.benchmark import LIKE_INT4
from kava.errors import UserError
from kava.provenance import library_versions
from kava.text import table as columns


def measure(
    source: Source,
    codecs: Mapping[str, dict[str, Any]],
    setup: dict[str, Any],
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Measure codecs, name → settings as in the configuration, on one source; `LIKE_INT4` needs `int4` before it.

    `setup` names model and data for the record; `say` is called with a sentence at each step.

    Returns
    -------
    dict
        `codecs`, `alternatives`, `rate_distortion_bound`, `skipped` (name → why) and `setup`.
    """
    measured: dict[str, Measured] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="kava-bench-") as temporary:
        for name, settings in codecs.items():
            say(f"{name}: writing a store of {source.tokens:,} tokens and reading it back")
            try:
                chosen = settings
                if name == LIKE_INT4:
                    chosen = as_faithful_as(measured["int4"].cos, source, lambda text: say(f"{LIKE_INT4}: {text}"))
                with tempfile.TemporaryDirectory(dir=temporary) as folder:
                    measured[name] = measure_codec(source, chosen, Path(folder))
            except UserError as error:
                skipped[name] = str(error)
                say(f"{name} is left out: {error}")
        say("alternatives: the same KV in other formats")
        others, left_out = measure_alternatives(source, Path(temporary))
        for name, reason in left_out.items():
            say(f"{name} is left out: {reason}")
        skipped |= left_out
    return {
        "codecs": {name: of_codec.figures for name, of_codec in measured.items()},
        "alternatives": others,
        "rate_distortion_bound": _bounds(source, measured, skipped, say),
        "skipped": skipped,
        "setup": {
            **setup,
            "tokens": source.tokens,
            "geometry": source.geometry.to_dict(),
            "threads": torch.get_num_threads(),
            "versions": library_versions(PACKAGES),
        },
    }


def _bounds(
    source: Source, measured: Mapping[str, Measured], skipped: dict[str, str], say: Callable[[str], object]
) -> dict[str, Any]:
    if not Bound.enough(source.tokens, source.geometry.channels):
        skipped["rate_distortion_bound"] = f"{source.tokens} tokens are too few for the covariance of this geometry"
        return {}
    say("rate-distortion bound")
    bound = Bound(list(source.kv.values()))
    bounds = {}
    for name, of_codec in measured.items():
        heads = of_codec.heads
        if float(heads.error_centered.max()) == 0.0:
            skipped[f"rate_distortion_bound of {name}"] = "it is exact, and a Gaussian is not coded exactly"
            continue
        bounds[name] = {
            "ratio": bound.ratio(heads.error_centered),
            "ratio_first_layer_known": bound.ratio_first_layer_known(heads.error_centered),
            "cos_centered": float(heads.cos_centered.mean()),
            "relative_error_centered": float(heads.error_centered.square().mean().sqrt()),
        }
    return bounds


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal: a line per codec and alternative, and what they mean."""
    head = ("", "ratio", "bits", "K cos", "worst", "V cos", "worst", "centred", "bound", "layer 0 known",
            "encode", "decode", "write", "read")  # fmt: skip
    lines = [head]
    for name, row in figures["codecs"].items():
        bound = figures["rate_distortion_bound"].get(name)
        centred = (row["k_cos_centered_mean"] + row["v_cos_centered_mean"]) / 2
        cosines = [row[f"{tensor}_cos_{which}"] for tensor in "kv" for which in ("mean", "min")]
        bounds = [f"{bound[key]:.4f}" for key in ("ratio", "ratio_first_layer_known")] if bound else ["", ""]
        lines.append(
            (name, f"{row['ratio']:.4f}", f"{row['bits_per_value']:.2f}", *(f"{x:.6f}" for x in (*cosines, centred)),
             *bounds, *(f"{row[f'{what}_mb_s']:.0f}" for what in ("encode", "decode", "write", "read")))
        )  # fmt: skip
    for name, row in figures["alternatives"].items():
        speeds = [f"{row[f'{what}_mb_s']:.0f}" for what in ("write", "read")]
        lines.append((name, f"{row['ratio']:.4f}", *[""] * 10, *speeds))
    return "\n".join([columns(lines, left=1), "", *_notes(figures)])


def _notes(figures: Mapping[str, Any]) -> list[str]:
    setup = figures["setup"]
    geometry = setup["geometry"]
    return [
        f"{setup['tokens']:,} tokens of {setup['data']}, KV of {setup['model']}: {geometry['layers']} layers × "
        f"{geometry['kv_heads']} KV heads × {geometry['head_dim']}; {setup['threads']} threads.",
        "ratio: the whole folder over raw bf16. bits: stored bits per KV value. cos: mean over tokens, layers, heads,",
        "and the worst head's; centred: without channel means, of K and V. Speeds: MB of raw bf16 per second; encode",
        "and decode are the codec alone, write and read a store on disk.",
        "bound: a Gaussian of this covariance at the codec's centred error. It does not know that the token id, stored",
        "anyway, determines the first layer; a store can lie below it. layer 0 known: the first layer for free.",
        *(f"left out: {name}: {reason}" for name, reason in figures["skipped"].items()),
    ]
