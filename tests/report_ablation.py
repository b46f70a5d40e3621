"""The finished runs of an ablation with planted numbers: eighteen arms, five seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from report_fixtures import PROVENANCE, answers, edit_json, write_evaluation, write_store, write_training

from kava.report import ReferenceFiles, ReportInputs, RunFiles


def _kv(kind: str, loss: str = "mercator", **further: Any) -> dict[str, Any]:
    return {"aligner": {"kind": kind}, "loss": {"kind": loss}, "kv_weight": 1.0, "auxiliary": {}, **further}


# Arm → (configuration, true accuracy, final centred cosine, projector parameters).
ABLATION: dict[str, tuple[dict[str, Any], float, float, int | None]] = {
    "elastic_mercator": (_kv("flat"), 0.40, 0.86, 146_849_792),
    "elastic_mse": (_kv("flat", "mse"), 0.39, 0.84, 146_849_792),
    "linear_mercator": (_kv("linear"), 0.37, 0.78, 44_040_192),
    "linear_mse": (_kv("linear", "mse"), 0.36, 0.76, 44_040_192),
    "flat_matched": (_kv("flat_matched"), 0.37, 0.71, 402_432),
    "pure_direction": (_kv("structured", loss_beta=0.0), 0.42, 0.90, 400_000),
    "weak_constraint": (_kv("structured", kv_weight=0.1), 0.37, 0.82, 400_000),
    "strong_constraint": (_kv("structured", kv_weight=10.0), 0.24, 0.96, 400_000),
    "high_capacity": (_kv("flat", mlp_ratio=2.0), 0.39, 0.87, 293_000_000),
    "low_capacity": (_kv("flat", mlp_ratio=0.5), 0.38, 0.80, 73_400_000),
    "hybrid": (_kv("structured", "hybrid"), 0.52, 0.91, 400_000),
    "structural": (_kv("structured", "structural", auxiliary={"attention": {}}), 0.43, 0.88, 400_000),
    "structured": (_kv("structured"), 0.55, 0.92, 400_000),
    "structured_cka": (_kv("structured", auxiliary={"cka": {"weight": 0.1}}), 0.44, 0.91, 400_000),
    "random": (_kv("structured", select={"kind": "random"}), 0.38, 0.85, 400_000),
    "shuffled": (_kv("structured", teacher_kv="shuffled"), 0.36, 0.12, 400_000),
    "logit_kd": ({"aligner": None, "loss": {"kind": "mercator"}, "auxiliary": {"logit_kd": {}}}, 0.39, 0.0, None),
    "sft": ({"aligner": None, "loss": {"kind": "mercator"}, "auxiliary": {}}, 0.36, 0.0, None),
}
ABLATION_CONTROLS = ["shuffled", "logit_kd", "sft"]
ABLATION_SEEDS = ("42", "43", "44", "45", "46")


def ablation_runs(
    root: Path, n: int = 200, layers: tuple[int, int] = (3, 2), teacher_layers: int = 4, logged: int = 50
) -> ReportInputs:
    """Eighteen arms, five seeds, each KV arm declared against sft and shuffled; accuracy varies over seeds."""
    rng = np.random.default_rng(11)
    hardness = rng.random(n)
    depth = np.abs(np.arange(layers[0])[:, None] / layers[0] - np.arange(teacher_layers) / teacher_layers)
    cka = {"keys": (0.95 - depth).tolist(), "values": (0.9 - 0.8 * depth).tolist()}
    runs: dict[str, dict[str, RunFiles]] = {}
    for arm, (config, rate, final, parameters) in ABLATION.items():
        for seed in ABLATION_SEEDS:
            place = root / "ablation" / arm / f"seed-{seed}"
            planted: dict[str, Any] = {"final": final, "parameters": parameters, "layers": layers}
            planted |= {"steps": 10 * logged}
            projector = None
            if config["aligner"] is not None:
                projector = write_training(place / "projector", config, seed, "pretrain", **planted)
                edit_json(projector / "manifest.json", cka=cka)
            reached = rate + rng.normal(0, 0.015)
            runs.setdefault(arm, {})[seed] = RunFiles(
                projector,
                write_training(place / "student", config, seed, "distill", **planted),
                write_evaluation(place / "evaluation", answers(rng, hardness, reached), f"{arm}-{seed}"),
            )
    arms = {arm: config for arm, (config, *_) in ABLATION.items()}
    references = {"teacher": 0.94, "base": 0.21}
    teacher, base = (
        ReferenceFiles(f"demo-{name}", write_evaluation(root / name, answers(rng, hardness, rate), name))
        for name, rate in references.items()
    )
    return ReportInputs(
        experiment="ablation",
        preset="ablation",
        arms=arms,
        runs=runs,
        stores={"demo": write_store(root)},
        teacher=teacher,
        student_base=base,
        comparisons=[(arm, control) for arm in arms if arm not in ABLATION_CONTROLS for control in ("sft", "shuffled")],
        controls=ABLATION_CONTROLS,
        config={"preset": "ablation", "seeds": [int(seed) for seed in ABLATION_SEEDS], "arms": arms},
        provenance=PROVENANCE,
    )
