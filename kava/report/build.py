"""Every number of the report, from the files of finished runs; the page adds layout and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kava.report.clean import flatten, jsonable
from kava.report.curves import curves
from kava.report.fairness import check_evaluations, check_training
from kava.report.fidelity import read_fidelity
from kava.report.inputs import ReferenceFiles, ReportInputs
from kava.report.read import Evaluation, Run, read_evaluation, read_json, read_run
from kava.report.samples import pick_samples
from kava.report.statistics import TEST, compare, holm, wilson
from kava.report.verdict import decide

METRIC = "strict_match"
ALIGNMENT = ("cos_sim", "cos_sim_centered", "cos_sim_constant", "r2", "retrieval_at_1", "mag_ratio")
# A raw cosine above the first with r2 under the second: the projection predicts little but the channel means.
COLLAPSE = (0.9, 0.05)


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _sum(values: Sequence[float | None]) -> float | None:
    """None as soon as one value is missing: what is not known is reported, never summed or averaged over."""
    known = _known(values)
    return sum(known) if len(known) == len(values) else None


def _seed_row(run: Run) -> dict[str, Any]:
    manifest, scores = run.distill.manifest, run.evaluation.manifest
    alignment = manifest.get("alignment") or {}
    stages = [run.distill.cost] + ([run.pretrain.cost] if run.pretrain else [])
    peaks = _known(cost.get("peak_memory_mib") for cost in [*stages, run.evaluation.cost])
    return {
        "strict_match": scores["strict_match"],
        "flexible_extract": scores["flexible_extract"],
        "n": scores["n"],
        **{name: alignment.get(name) for name in ALIGNMENT},
        "train_seconds": _sum([cost.get("seconds") for cost in stages]),
        "train_tokens": manifest.get("train_tokens"),
        "optimizer_steps": manifest.get("optimizer_steps"),
        "peak_memory_mib": max(peaks, default=None),
    }


def _cost_row(run: Run) -> dict[str, Any]:
    stages = {"pretrain": run.pretrain, "distill": run.distill, "evaluate": run.evaluation}
    return {
        f"{stage}_{field}": None if part is None else part.cost.get(field)
        for stage, part in stages.items()
        for field in ("seconds", "peak_memory_mib")
    }


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return total / len(values) if values and total is not None else None


def _arm(config: Mapping[str, Any], runs: Mapping[str, Run]) -> dict[str, Any]:
    aligner = (config.get("aligner") or {}).get("kind")
    same_questions = len({frozenset(run.evaluation.samples) for run in runs.values()}) == 1
    rows = {seed: _seed_row(run) for seed, run in runs.items()}
    rates = {key: _mean([row[key] for row in rows.values()]) for key in (METRIC, "flexible_extract")}
    if not same_questions:
        rates = dict.fromkeys(rates)
    n = min((row["n"] for row in rows.values()), default=0)
    rate = rates[METRIC]
    parameters = _known(run.distill.manifest.get("projector_parameters") for run in runs.values())
    return {
        "aligner": aligner,
        "loss": None if aligner is None else (config.get("loss") or {}).get("kind"),
        "projector_parameters": parameters[0] if parameters else None,
        "strict_match_mean": rate,
        "strict_match_ci95": None if rate is None or n < 1 else list(wilson(rate, n)),
        "flexible_extract_mean": rates["flexible_extract"],
        "seeds": rows,
    }


def _reference(files: ReferenceFiles, evaluation: Evaluation) -> dict[str, Any]:
    row = {key: evaluation.manifest[key] for key in ("strict_match", "flexible_extract", "n")}
    rate, n = row["strict_match"], row["n"]
    return {
        "model": files.model,
        **row,
        "strict_match_ci95": None if rate is None or n < 1 else list(wilson(rate, n)),
    }


def _comparisons(
    pairs: Sequence[tuple[str, str]], runs: Mapping[str, Mapping[str, Run]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and a sentence for each pair that could not be compared."""
    rows: list[dict[str, Any]] = []
    refusals = []
    for a, b in pairs:
        base = {"a": a, "b": b, "metric": METRIC, "test": TEST}
        scores = [{seed: run.evaluation.scores() for seed, run in runs.get(x, {}).items()} for x in (a, b)]
        try:
            result = compare(a, b, *scores)
        except ValueError as error:
            message = str(error)
            refusals.append(f"{message[0].upper()}{message[1:]}.")
            nothing = dict.fromkeys(("delta", "ci95", "p_value", "n"))
            rows.append({**base, **nothing, "mcnemar": {}, "discordant": {}, "seeds": []})
        else:
            rows.append({**base, **asdict(result)})
    adjusted = iter(holm([row["p_value"] for row in rows if row["p_value"] is not None]))
    for row in rows:
        row["p_value_holm"] = None if row["p_value"] is None else next(adjusted)
    return rows, refusals


def _warnings(runs: Mapping[str, Mapping[str, Run]]) -> list[str]:
    sentences = []
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            where = f"{arm} (seed {seed}"
            for stage, part in (("pretrain", run.pretrain), ("distill", run.distill)):
                carried = part.manifest.get("warnings") or [] if part else []
                sentences += [f"{where}, {stage}): {text}" for text in carried]
            alignment = run.distill.manifest.get("alignment") or {}
            cosine, r2 = alignment.get("cos_sim"), alignment.get("r2")
            if cosine is not None and r2 is not None and cosine > COLLAPSE[0] and r2 < COLLAPSE[1]:
                sentences.append(
                    f"{where}): collapse. The raw cosine is {cosine:.2f} but r2 is {r2:.2f}, so the "
                    "projection predicts little more than each channel’s mean."
                )
    return sentences


def _differences(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dotted configuration key → arm → value, for the keys in which the arms differ."""
    flat = {name: flatten(config) for name, config in arms.items()}
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    table = {key: {name: config.get(key) for name, config in flat.items()} for key in keys}
    return {key: row for key, row in table.items() if any(v != row[next(iter(row))] for v in row.values())}


def build_report(inputs: ReportInputs) -> dict[str, Any]:
    """Read the runs and compute every number that the page shows.

    Returns
    -------
    dict
        Plain JSON types, no NaN or infinity (they become null, and `warnings` says where). Fulfils the
        contract of `ab_report.json`; beside it stand `verdict_parts`, `fairness`, `warnings`, `cost`,
        `fidelity`, `curves`, `samples`, `controls`, `arm_differences`, `configuration` and `provenance`.

    Raises
    ------
    ValueError, FileNotFoundError
        If a file is missing or is not what its stage writes. Runs that do not fit together are no error:
        each is a sentence in `fairness.mismatches`, and what cannot be compared is null.
    """
    lost: list[str] = []
    runs = {
        arm: {seed: read_run(files, lost) for seed, files in inputs.runs.get(arm, {}).items()} for arm in inputs.arms
    }
    references = {"teacher": inputs.teacher, "student_base": inputs.student_base}
    evaluated = {name: read_evaluation(files.evaluation, lost) for name, files in references.items()}
    titles = {"teacher": "teacher", "student_base": "base student"}
    named = {titles[name]: evaluation for name, evaluation in evaluated.items()}
    named |= {f"{arm} (seed {seed})": run.evaluation for arm, seeds in runs.items() for seed, run in seeds.items()}

    arms = {arm: _arm(config, runs[arm]) for arm, config in inputs.arms.items()}
    comparisons, refusals = _comparisons(inputs.comparisons, runs)
    mismatches = check_training(runs) + check_evaluations(named) + refusals
    logged, broken = curves(runs)
    manifests = {name: read_json(path, lost) for name, path in inputs.stores.items()}
    stores = {name: _store(path.as_posix(), manifests[name]) for name, path in inputs.stores.items()}
    fidelity = read_fidelity(inputs.bench, list(manifests.values()), lost) if inputs.bench else None

    report = jsonable(
        {
            "experiment": inputs.experiment,
            "preset": inputs.preset,
            "verdict": "",
            **{name: _reference(files, evaluated[name]) for name, files in references.items()},
            "arms": arms,
            "comparisons": comparisons,
            "controls": inputs.controls,
            "stores": stores,
            "fidelity": fidelity,
            "fairness": {"equal": not mismatches, "mismatches": mismatches},
            "cost": {arm: {seed: _cost_row(run) for seed, run in s.items()} for arm, s in runs.items()},
            "samples": pick_samples({a: {s: run.evaluation for s, run in r.items()} for a, r in runs.items()}),
            "arm_differences": _differences(inputs.arms),
            "configuration": inputs.config,
            "provenance": inputs.provenance,
        },
        lost=lost,
    )
    report["curves"] = logged
    report["warnings"] = _warnings(runs) + broken
    report["warnings"] += [f"{place} is not a finite number; it is left out." for place in lost]
    verdict = decide(report["arms"], report["comparisons"], inputs.controls, mismatches)
    return report | {"verdict": verdict.sentence, "verdict_parts": verdict.to_dict()}


def _store(path: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    codec = manifest["codec"]
    sizes = {key: manifest.get(key) for key in ("tokens", "bytes", "raw_bf16_bytes", "ratio")}
    return {"manifest": path, **sizes, "codec": codec["kind"], "bits_per_value": codec.get("bits_per_value")}
