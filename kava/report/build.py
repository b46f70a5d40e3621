"""Every number of the report, from the files of finished runs; the page adds layout and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kava.report.against_base import compare_with_base
from kava.report.alignment import first_cka, over_shuffled
from kava.report.apart import questions_apart
from kava.report.breakdown import break_down
from kava.report.clean import flatten, jsonable
from kava.report.comparisons import compare_arms
from kava.report.curves import curves
from kava.report.fairness import check_evaluations, check_training
from kava.report.fidelity import read_fidelity
from kava.report.inputs import ReportInputs
from kava.report.notices import inert_runs, lost_numbers, merged, metrics_warnings, run_notices, token_warnings
from kava.report.overlap import check_overlap
from kava.report.question import question
from kava.report.read import read_evaluation, read_json, read_run
from kava.report.results import arm_row, cost_row, mean_cost, reference_row
from kava.report.samples import pick_samples
from kava.report.verdict import decide


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
        contract of `ab_report.json`; beside it stand `question`, `against_base`, `inert`, `verdict_parts`,
        `fairness`, `warnings`, `cost`, `cost_mean`, `fidelity`, `curves`, `kv_until`, `breakdown`, `samples`,
        `controls`, `retrieval_over_shuffled`, `cka`, `arm_differences`, `configuration` and `provenance`.

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
    runs = questions_apart(runs)
    references = {"teacher": inputs.teacher, "student_base": inputs.student_base}
    evaluated = {name: read_evaluation(files.evaluation, lost) for name, files in references.items()}
    titles = {"teacher": "teacher", "student_base": "base student"}
    named = {titles[name]: evaluation for name, evaluation in evaluated.items()}
    named |= {f"{arm} (seed {seed})": run.evaluation for arm, seeds in runs.items() for seed, run in seeds.items()}

    arms = {arm: arm_row(config, runs[arm], inputs.seeds[arm]) for arm, config in inputs.arms.items()}
    comparisons, refusals = compare_arms(inputs.comparisons, runs, inputs.seeds)
    tokens = {name: read_json(path, lost) for name, path in inputs.tokens.items()}
    overlap = check_overlap(tokens)
    # Experiments may have no base student in common.
    against_base = (
        compare_with_base(runs, evaluated["student_base"], inputs.seeds, comparisons) if inputs.across is None else []
    )
    unequal = check_training(runs, inputs.seeds) + check_evaluations(named) + refusals
    mismatches = unequal + overlap.mismatches + inputs.mismatches
    logged, broken = curves(runs)
    manifests = {name: read_json(path, lost) for name, path in inputs.stores.items()}
    stores = {name: _store(path.as_posix(), manifests[name]) for name, path in inputs.stores.items()}
    fidelity = read_fidelity(inputs.bench, list(manifests.values()), lost) if inputs.bench else None

    alignments = {name: arm["alignment"] for name, arm in arms.items()}
    evaluations = {arm: {seed: run.evaluation for seed, run in seeds.items()} for arm, seeds in runs.items()}
    cost = {arm: {seed: cost_row(run) for seed, run in seeds.items()} for arm, seeds in runs.items()}
    report = jsonable(
        {
            "experiment": inputs.experiment,
            "preset": inputs.preset,
            "question": question(inputs, comparisons),
            "verdict": "",
            **{name: reference_row(files, evaluated[name]) for name, files in references.items()},
            "arms": arms,
            "comparisons": comparisons,
            "against_base": against_base,
            "controls": inputs.controls,
            "retrieval_over_shuffled": over_shuffled(inputs.arms, alignments),
            "cka": first_cka(runs, inputs.arms),
            "stores": stores,
            "fidelity": fidelity,
            "fairness": {
                "equal": not mismatches,
                "mismatches": mismatches,
                "overlap": overlap.found,
                "notes": overlap.notes,
            },
            "cost": cost,
            "cost_mean": {arm: mean_cost(list(cost[arm].values()), arms[arm]) for arm in runs},
            "kv_until": {arm: c["kv_until"] for arm, c in inputs.arms.items() if c.get("aligner") and "kv_until" in c},
            "breakdown": break_down(evaluations, inputs.seeds),
            "samples": pick_samples(evaluations),
            "arm_differences": _differences(inputs.arms),
            "configuration": inputs.config,
            "provenance": inputs.provenance,
        },
        lost=lost,
    )
    report["curves"] = logged
    inert = inert_runs(runs, inputs.arms, inputs.controls)
    report["inert"] = list(dict.fromkeys(notice.arm for notice in inert))
    said = merged(run_notices(runs) + inert + broken) + token_warnings(tokens) + overlap.warnings
    report["warnings"] = said + metrics_warnings(runs) + lost_numbers(lost)
    verdict = decide(
        report["arms"], report["comparisons"], inputs.controls, inputs.arms, mismatches, inputs.across,
        report["against_base"], report["inert"],
    )  # fmt: skip
    return report | {"verdict": verdict.sentence, "verdict_parts": verdict.to_dict()}


def _store(path: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    codec = manifest["codec"]
    sizes = {key: manifest.get(key) for key in ("tokens", "bytes", "raw_bf16_bytes", "ratio")}
    return {"manifest": path, **sizes, "codec": codec["kind"], "bits_per_value": codec.get("bits_per_value")}
