"""The finished runs of an ablation with planted numbers: eighteen arms, five seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from report_files import edit_json
from report_fixtures import Planted, write_experiment

from kava.report.inputs import ReportInputs


def _kv(kind: str, loss: str = "mercator", **further: Any) -> dict[str, Any]:
    return {"aligner": {"kind": kind}, "loss": {"kind": loss}, "kv_weight": 1.0, "auxiliary": {}, **further}


ABLATION = {
    "elastic_mercator": Planted(_kv("flat"), 0.40, 0.86, 146_849_792),
    "elastic_mse": Planted(_kv("flat", "mse"), 0.39, 0.84, 146_849_792),
    "linear_mercator": Planted(_kv("linear"), 0.37, 0.78, 44_040_192),
    "linear_mse": Planted(_kv("linear", "mse"), 0.36, 0.76, 44_040_192),
    "flat_matched": Planted(_kv("flat_matched"), 0.37, 0.71, 402_432),
    "pure_direction": Planted(_kv("structured", loss_beta=0.0), 0.42, 0.90, 400_000),
    "weak_constraint": Planted(_kv("structured", kv_weight=0.1), 0.37, 0.82, 400_000),
    "strong_constraint": Planted(_kv("structured", kv_weight=10.0), 0.24, 0.96, 400_000),
    "high_capacity": Planted(_kv("flat", mlp_ratio=2.0), 0.39, 0.87, 293_000_000),
    "low_capacity": Planted(_kv("flat", mlp_ratio=0.5), 0.38, 0.80, 73_400_000),
    "hybrid": Planted(_kv("structured", "hybrid"), 0.52, 0.91, 400_000),
    "structural": Planted(_kv("structured", "structural", auxiliary={"attention": {}}), 0.43, 0.88, 400_000),
    "structured": Planted(_kv("structured"), 0.55, 0.92, 400_000),
    "structured_cka": Planted(_kv("structured", auxiliary={"cka": {"weight": 0.1}}), 0.44, 0.91, 400_000),
    "random": Planted(_kv("structured", select={"kind": "random"}), 0.38, 0.85, 400_000),
    "shuffled": Planted(_kv("structured", teacher_kv="shuffled"), 0.36, 0.12, 400_000),
    "logit_kd": Planted(
        {"aligner": None, "loss": {"kind": "mercator"}, "auxiliary": {"logit_kd": {}}}, 0.39, 0.0, None
    ),
    "sft": Planted({"aligner": None, "loss": {"kind": "mercator"}, "auxiliary": {}}, 0.36, 0.0, None),
}
ABLATION_CONTROLS = ["shuffled", "logit_kd", "sft"]
ABLATION_SEEDS = ("42", "43", "44", "45", "46")


def ablation_runs(
    root: Path, n: int = 200, layers: tuple[int, int] = (3, 2), teacher_layers: int = 4, logged: int = 50
) -> ReportInputs:
    """Eighteen arms, five seeds, each KV arm declared against sft and shuffled; accuracy varies over seeds."""
    depth = np.abs(np.arange(layers[0])[:, None] / layers[0] - np.arange(teacher_layers) / teacher_layers)
    cka = {"keys": (0.95 - depth).tolist(), "values": (0.9 - 0.8 * depth).tolist()}
    configs = {arm: planted.config for arm, planted in ABLATION.items()}
    kv_arms = [arm for arm in ABLATION if arm not in ABLATION_CONTROLS]
    inputs = write_experiment(
        root,
        "ablation",
        ABLATION,
        ABLATION_SEEDS,
        np.random.default_rng(11),
        n,
        dict.fromkeys(("pretrain", "distill"), 10 * logged),
        layers,
        spread=0.015,
        comparisons=[(arm, control) for arm in kv_arms for control in ("sft", "shuffled")],
        controls=ABLATION_CONTROLS,
        config={"preset": "ablation", "seeds": [int(seed) for seed in ABLATION_SEEDS], "arms": configs},
    )
    for files in (files for seeds in inputs.runs.values() for files in seeds.values()):
        if files.projector is not None:
            edit_json(files.projector / "manifest.json", cka=cka)
    return inputs
