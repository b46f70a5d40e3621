"""Files of finished stages, written as the stages write them but with planted numbers, and edited."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kava.data.overlap import find_overlap

LIKELIHOOD = ("answer_nll", "teacher_agreement")
EVALUATED = {"batch_size": 16, "max_new_tokens": 256}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def edit_lines(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    write_lines(path, change([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))


def write_evaluation(directory: Path, right: np.ndarray, model: str) -> Path:
    """Of questions with marks; a right answer has the lower negative log-likelihood."""
    rows = []
    for doc, hit in enumerate(right):
        a, b = 3 + doc % 17, 2 + doc % 11
        said = a + b if hit else a + b + 1 + doc % 3
        rows.append(
            {
                "doc_id": doc,
                "question": f"Ann has {a} apples and buys {b} more at the market. How many apples has Ann?",
                "gold": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} apples.\n#### {a + b}",
                "answer": f"She has {a} + {b} = <<{a}+{b}={said}>>{said} apples.\n#### {said}",
                "strict_match": int(hit),
                "flexible_extract": int(hit or doc % 29 == 0),
                "answer_nll": (0.8 if hit else 1.4) + 0.01 * (doc % 7),
                "teacher_agreement": (0.9 if hit else 0.7) - 0.01 * (doc % 5),
            }
        )
    return _write_evaluation(directory, rows, ("strict_match", "flexible_extract", *LIKELIHOOD), model)


def write_text_evaluation(directory: Path, nlls: np.ndarray, model: str) -> Path:
    """Of rows of prompt and response, each with the mean negative log-likelihood of its response."""
    rows = [
        {
            "doc_id": doc,
            "question": f"What is {'very ' * (doc % 5)}number {doc}?",
            "gold": f"It is {doc}.",
            "answer": f"It is {doc}.",
            "answer_nll": float(nll),
            "teacher_agreement": None,
        }
        for doc, nll in enumerate(nlls)
    ]
    return _write_evaluation(directory, rows, ("answer_nll",), model)


def _write_evaluation(directory: Path, rows: list[dict[str, Any]], metrics: tuple[str, ...], model: str) -> Path:
    write_lines(directory / "samples.jsonl", rows)
    manifest = {
        "stage": "evaluate",
        "spec": {"key": {"evaluation": EVALUATED}},
        "model": model,
        "teacher_agreement": None,
        **{metric: float(np.mean([row[metric] for row in rows])) for metric in metrics},
        "n": len(rows),
        "questions_sha256": sha("questions"),
    }
    write_json(directory / "manifest.json", manifest)
    write_json(directory / "cost.json", {"seconds": 12.3, "peak_memory_mib": 400.5})
    return directory


def write_at_steps(evaluation: Path, scores: dict[int, dict[str, float]], n: int = 40, pace: float = 0.5) -> None:
    """Scores at steps of training, of which each takes `pace` seconds; `scores` is step → metric → mean."""
    at_steps = {str(step): {**means, "n": n, "seconds": pace * step} for step, means in scores.items()}
    edit_json(evaluation / "manifest.json", at_steps=at_steps)


def forget_likelihoods(evaluation: Path) -> None:
    """As an evaluation was before the gold answers were scored."""
    edit_lines(
        evaluation / "samples.jsonl", lambda rows: [{k: v for k, v in r.items() if k not in LIKELIHOOD} for r in rows]
    )
    manifest = json.loads((evaluation / "manifest.json").read_text())
    write_json(evaluation / "manifest.json", {k: v for k, v in manifest.items() if k not in LIKELIHOOD})


def write_training(
    directory: Path,
    config: dict[str, Any],
    seed: str,
    stage: str,
    final: float,
    parameters: int | None,
    steps: int = 400,
    every: int = 10,
    layers: tuple[int, int] = (3, 2),
) -> Path:
    """One training stage whose centred cosine rises to `final`; `layers` is (layers, KV heads) of `per_head`."""
    rng = np.random.default_rng([int(seed), int(sha(json.dumps(config))[:8], 16), len(stage)])
    aligned = config["aligner"] is not None
    auxiliary = config.get("auxiliary", {})
    rows = []
    for step in range(every, steps + 1, every):
        done = 1 - np.exp(-step / 120)
        noise = rng.normal(0, 0.012)
        kv = 1 - final * done + noise
        ce = 2.2 * np.exp(-step / 90) + 0.35 + 2 * noise
        rows.append(
            {
                "step": step,
                "loss": (ce if stage == "distill" else 0.0) + (kv if aligned else 0.0),
                "ce": ce if stage == "distill" else None,
                "kv": kv if aligned else None,
                "cos_sim": 0.9 + 0.08 * done + noise / 4 if aligned else None,
                "cos_sim_centered": 1 - kv if aligned else None,
                **dict.fromkeys(auxiliary, 0.9 - 0.5 * done + noise if stage == "distill" else None),
                "student_lr": 5e-5,
                "projector_lr": 1e-3 if aligned else None,
                "data_wait": 0.01,
                "seconds": step * 0.1,
            }
        )
    write_lines(directory / "metrics.jsonl", rows)
    spread = final + rng.normal(0, 0.04, (2, *layers))
    per_head = {"cos_sim_centered": np.clip(spread, -1, 0.999).tolist(), "r2": np.clip(spread, 0, 1).tolist()}
    alignment = {
        "cos_sim": 0.97,
        "cos_sim_centered": final,
        "cos_sim_constant": 0.91,
        "angular_distance": float(np.arccos(final) / np.pi),
        "alignment_accuracy": final - 0.05,
        "r2": final**2,
        "retrieval_at_1": max(final - 0.1, 0.02),
        "mag_ratio": 1.04,
        "per_head": per_head,
    }
    manifest = {
        "stage": stage,
        "spec": {},
        "optimizer_steps": steps,
        "train_tokens": 71_234 * steps // 400,
        "data_order_sha256": sha(f"order-{seed}"),
        "initial_student_sha256": sha("student"),
        "projector_parameters": parameters,
        "alignment": alignment if aligned else None,
        "warnings": [],
        "files": {"model.safetensors": sha(f"{json.dumps(config)}-{seed}-{steps}")},
    }
    write_json(directory / "manifest.json", manifest)
    cost = {"seconds": 41.5 if aligned else 30.25, "data_wait_share": 0.01, "peak_memory_mib": 900.1}
    write_json(directory / "cost.json", cost)
    return directory


def write_bench(path: Path) -> Path:
    """Figures as of `kava bench store`, for three codecs; int8 is that of the run's store."""
    codecs, bounds = {}, {}
    for name, ratio, loss, settings in (
        ("bf16", 0.502, 1e-6, {"kind": "bf16"}),
        ("int8", 0.466, 1.6e-5, {"kind": "int8"}),
        ("int4", 0.218, 4.7e-3, {"kind": "int4"}),
        ("transform-0.99", 0.026, 6.5e-3, {"kind": "transform", "target_cos": 0.99}),
        ("transform-0.95", 0.014, 3.1e-2, {"kind": "transform", "target_cos": 0.95}),
    ):
        figures = {f"{x}_rel_error": 0.1 for x in "kv"} | {f"{x}_cos_mean": 1 - loss / 2 for x in "kv"}
        for x, share in (("k", 0.8), ("v", 1.2)):
            figures |= {f"{x}_cos_centered_mean": 1 - share * loss, f"{x}_cos_centered_min": 1 - 2 * share * loss}
        speeds = {f"{what}_mb_s": 456.7 for what in ("encode", "decode", "write", "read")}
        codecs[name] = {"codec": settings, "ratio": ratio, "bits_per_value": 15 * ratio, **figures, **speeds}
        bounds[name] = {
            "ratio": -0.018 * np.log2(loss) - 0.07,
            "ratio_first_layer_known": -0.015 * np.log2(loss) - 0.06,
        }
    write_json(
        path,
        {
            "codecs": codecs,
            "rate_distortion_bound": bounds,
            "alternatives": {
                "npz": {"how": "bf16 as uint16, deflate", "ratio": 0.657, "write_mb_s": 15, "read_mb_s": 226}
            },
            "skipped": {"hdf5_gzip": "h5py is not installed"},
            "setup": {"tokens": 16_292},
        },
    )
    return path


def write_tokens(root: Path, training: Sequence[str] = (), test: Sequence[str] = ()) -> Path:
    """Manifest of a token set with these questions, which by default share nothing."""
    splits = {"train": training, "validation": (), "test": test}
    overlap = find_overlap({split: [{"question": text} for text in texts] for split, texts in splits.items()})
    manifest = root / "tokens" / "demo-0123abcd" / "manifest.json"
    write_json(manifest, {"stage": "tokenize", "spec": {}, "splits": {}, "overlap": overlap})
    return manifest


def write_store(root: Path) -> Path:
    store = root / "teacher_kv" / "demo-0123abcd" / "manifest.json"
    write_json(
        store,
        {
            "name": "demo",
            "key": "0123abcd",
            "spec": {},
            "codec": {"kind": "int8", "bits_per_value": 8.5},
            "tokens": 71_234,
            "bytes": 19_000_000,
            "raw_bf16_bytes": 36_471_808,
            "ratio": 0.52,
        },
    )
    return store
