"""`kava bench store`: its figures are those of the stores, and the codecs keep what they promise."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from kava.bench import bench_store
from kava.bench.bound import Bound, rate
from kava.bench.codecs import measure_codec, read_amplification
from kava.bench.fidelity import Fidelity, summary
from kava.bench.source import synthetic
from kava.bench.workspace import quiet
from kava.cli import main
from kava.config import Jobs, Runtime, load_config
from kava.config.benchmark import REPORT_ROTATED, codecs_for_report, too_wide
from kava.config.kv import Int8Codec
from kava.config.specs import BenchSpec
from kava.data import tokenize
from kava.kv import Geometry, KeysValues
from kava.store.layout import Packing

CODEC_FIGURES = {
    *("ratio", "bits_per_value", "encode_mb_s", "decode_mb_s", "write_mb_s", "read_mb_s", "read_amplification"),
    *(f"{x}_cos{of}_{what}" for x in "kv" for of in ("", "_centered") for what in ("mean", "min")),
    *(f"{x}_rel_error{of}" for x in "kv" for of in ("", "_centered")),
    *("codec", "bit_exact", "held_out", "calibration_seconds", "bytes", "shards"),
}


def bench(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert main(["bench", "store", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_bound_of_independent_channels_is_half_a_log_of_variance_over_error() -> None:
    variances = np.array([4.0, 2.0, 1.0, 0.5])
    assert rate(variances, 0.25) == pytest.approx(np.mean(0.5 * np.log2(variances / 0.25)))
    assert rate(variances, variances.mean()) == 0
    # 1 and 0.5 are drowned: θ = (4 · 0.9 − 1.5) / 2 = 1.05.
    assert rate(variances, 0.9) == pytest.approx((np.log2(4 / 1.05) + np.log2(2 / 1.05)) / 8)


def test_the_bound_is_that_of_a_search_for_the_water_level() -> None:
    variances = np.random.default_rng(0).exponential(size=200) ** 3
    for share in (0.001, 0.1, 0.7):
        allowed = share * variances.mean()
        level = brentq(lambda x, d=allowed: np.minimum(variances, x).mean() - d, 0, variances.max())
        expected = np.maximum(0.5 * np.log2(variances / level), 0).mean()
        assert rate(variances, allowed) == pytest.approx(expected, rel=1e-9)


def test_the_bound_of_white_heads_does_not_depend_on_their_scale_and_halves_with_one_of_two_layers_known() -> None:
    kv = KeysValues(*(torch.randn(40_000, 2, 1, 8) * torch.tensor([[[1.0]], [[50.0]]]) + 7 for _ in range(2)))
    bound, error = Bound([kv]), torch.full((2, 2, 1), 0.1, dtype=torch.float64)
    assert bound.ratio(error) == pytest.approx(np.log2(10) / 16, rel=2e-3)
    assert bound.ratio_first_layer_known(error) == pytest.approx(np.log2(10) / 32, rel=2e-3)


def test_fidelity_of_a_known_turn_and_stretch_is_told_per_head() -> None:
    x = torch.tensor([3.0, 0.0]).expand(5, 1, 2, 2)
    turned = torch.tensor([[1.5, 1.5 * 3**0.5], [6.0, 0.0]]).expand(5, 1, 2, 2)  # by 60°; and twice as long
    fidelity = Fidelity(KeysValues(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)))
    fidelity.add(KeysValues(x, x), KeysValues(turned, x))
    found = fidelity.result()
    assert found.cos[0, 0].tolist() == pytest.approx([0.5, 1.0])
    assert found.error[0, 0].tolist() == pytest.approx([1.0, 1.0])
    assert found.cos[1].tolist() == [[1.0, 1.0]]
    told = summary(found)
    assert (told["k_cos_mean"], told["k_cos_min"], told["v_rel_error"]) == pytest.approx((0.75, 0.5, 0.0))


def test_a_constant_in_place_of_biased_keys_has_a_raw_cosine_near_1_and_a_centred_one_of_0() -> None:
    x = torch.randn(4000, 1, 1, 16) + 30
    kv, constant = KeysValues(x, x), x.mean(0).expand_as(x)
    fidelity = Fidelity(KeysValues(x.mean(0), x.mean(0)))
    fidelity.add(kv, KeysValues(constant, constant))
    told = summary(fidelity.result())
    assert told["k_cos_mean"] > 0.999
    assert abs(told["k_cos_centered_mean"]) < 1e-6
    assert told["k_rel_error_centered"] == pytest.approx(1, abs=1e-6)


def test_sums_over_parts_are_those_of_the_whole() -> None:
    x, y = (KeysValues(*(torch.randn(50, 2, 3, 4) for _ in range(2))) for _ in range(2))
    mean = KeysValues(*(tensor.mean(0) for tensor in x))
    whole, parts = Fidelity(mean), Fidelity(mean)
    whole.add(x, y)
    for part in (slice(0, 13), slice(13, 50)):
        parts.add(KeysValues(*(t[part] for t in x)), KeysValues(*(t[part] for t in y)))
    for a, b in zip(whole.result(), parts.result(), strict=True):
        torch.testing.assert_close(a, b)


def test_json_holds_every_figure_of_the_demo(capsys: Any, tmp_path: Path) -> None:
    output = tmp_path / "store.json"
    figures = bench(capsys, "--tokens", "3000", "--codecs", "bf16,int8", "--output", str(output))
    assert json.loads(output.read_text()) == figures
    assert set(figures) == {"codecs", "alternatives", "rate_distortion_bound", "skipped", "setup"}
    assert list(figures["codecs"]) == ["bf16", "int8"]
    for row in figures["codecs"].values():
        assert set(row) == CODEC_FIGURES
        assert sum(row["bytes"].values()) == pytest.approx(row["ratio"] * figures["setup"]["tokens"] * 1024)
    assert set(figures["alternatives"]) == {"torch.save", "safetensors", "npz", "hdf5_gzip", "zarr_default"}
    for row in figures["alternatives"].values():
        assert set(row) == {"how", "ratio", "write_mb_s", "read_mb_s"}
    assert figures["codecs"]["bf16"]["bit_exact"]
    assert not figures["codecs"]["int8"]["bit_exact"]
    for row in figures["rate_distortion_bound"].values():
        assert 0 < row["ratio_first_layer_known"] < row["ratio"] < 0.5
    assert set(figures["setup"]) >= {"model", "data", "tokens", "geometry", "versions", "threads"}
    assert 2700 <= figures["setup"]["tokens"] <= 3000


def test_a_format_whose_library_is_missing_is_left_out_and_the_reason_told(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert main(["bench", "store", "--synthetic", "2,1,16", "--tokens", "500", "--codecs", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "left out: hdf5_gzip: h5py is not installed: pip install kava[bench]" in printed
    assert "zarr_default" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--codecs", "int5"], "no codec 'int5'; choose from bf16, int8"),
        (["--codecs", "transform-int4"], "name int4 too"),
        (["--synthetic", "28,2"], "expected layers, KV heads and head dim"),
    ],
)
def test_a_wrong_option_is_one_sentence(capsys: Any, arguments: list[str], said: str) -> None:
    assert main(["bench", "store", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_wide_teachers_transforms_are_left_out_with_the_reason() -> None:
    codecs = codecs_for_report(Int8Codec())
    assert too_wide(codecs, REPORT_ROTATED, REPORT_ROTATED) == {}
    left_out = too_wide(codecs, 5760, REPORT_ROTATED)
    assert set(left_out) == {"transform-0.99", "transform-0.95"}
    assert "rotates all 5,760 channels together" in left_out["transform-0.99"]


@pytest.mark.slow
def test_the_reports_measurement_is_bounded_by_bytes_and_channels(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"data": {"train": 64, "validation": 12, "test": 12}, "report": {"codecs": True}})
    plan, runtime = Jobs(config), Runtime.of(config)
    of_token = 2 * 256 * 4
    small = {"measured_bytes": 1000 * of_token, "rotated_channels": 255}
    with quiet():
        tokenize.run(plan.tokenize, runtime)
        bench_store.run(replace(plan.bench, spec=BenchSpec(key=plan.bench.spec.key.model_copy(update=small))), runtime)
    figures = json.loads(plan.bench.output.read_text())
    assert set(figures["codecs"]) == {"bf16", "int8", "int4"}
    assert 800 < figures["setup"]["tokens"] <= 1000
    assert {"transform-0.99", "transform-0.95"} <= set(figures["skipped"])


@pytest.mark.parametrize(("kind", "most", "least_cos"), [("int8", 0.52, 0.9999), ("int4", 0.27, 0.99)])
def test_quantised_codecs_keep_their_size_at_head_dim_128(
    kind: str, most: float, least_cos: float, tmp_path: Path
) -> None:
    found = measure_codec(synthetic(Geometry(4, 2, 128), 4000), {"kind": kind}, tmp_path)
    assert found.figures["ratio"] <= most
    assert found.cos >= least_cos


def test_an_example_of_gsm8k_is_read_with_at_most_1_4_times_its_bytes() -> None:
    lengths = np.random.default_rng(0).normal(182, 60, 2000).clip(60, 537).astype(int).tolist()
    assert read_amplification(Geometry(28, 2, 128), Packing.pack(lengths, 8192)) <= 1.4


@pytest.mark.slow
def test_real_weights_on_gsm8k_are_stored_as_small_and_as_faithfully_as_promised(
    capsys: Any, tinystories: Path, gsm8k: Path
) -> None:
    found = bench(capsys, "--model", str(tinystories), "--data", str(gsm8k), "--tokens", "40000")
    codecs = found["codecs"]
    cos = {name: (row["k_cos_mean"] + row["v_cos_mean"]) / 2 for name, row in codecs.items()}
    ratio = {name: row["ratio"] for name, row in codecs.items()}
    assert codecs["bf16"]["bit_exact"]
    assert ratio["bf16"] <= 0.70
    assert ratio["int8"] <= 0.55
    assert min(codecs["int8"]["k_cos_mean"], codecs["int8"]["v_cos_mean"]) >= 0.9999
    assert ratio["int4"] <= 0.32
    assert min(codecs["int4"]["k_cos_mean"], codecs["int4"]["v_cos_mean"]) >= 0.99
    assert cos["transform-int4"] >= cos["int4"]
    assert ratio["transform-int4"] <= ratio["int4"] / 1.7
    assert ratio["transform-0.99"] <= 0.10
    assert ratio["transform-0.95"] <= 0.045
