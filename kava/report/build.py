"""Every number of the report, from the files of finished runs; the page adds layout and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.alignment import OverShuffled, first_cka, over_shuffled
from kava.report.breakdown import Bin, break_down
from kava.report.clean import Row, flatten, jsonable
from kava.report.comparisons import compare_arms, compare_with_base
from kava.report.cost import CostRow, MeanCost, cost_row, mean_cost
from kava.report.curves import CurveRow, curves
from kava.report.evaluated import AtStep, read_evaluation
from kava.report.fairness import check_evaluations, check_training
from kava.report.fidelity import Fidelity, read_fidelity
from kava.report.finished import questions_apart, read_run
from kava.report.floor import judged_by
from kava.report.inputs import ReportInputs
from kava.report.notices import (
    inert_runs,
    lost_numbers,
    merged,
    metrics_warnings,
    run_notices,
    token_warnings,
    unknown_numbers,
)
from kava.report.overlap import check_overlap
from kava.report.reading import read_json
from kava.report.results import ArmRow, ReferenceRow, arm_row, reference_row
from kava.report.samples import Samples, pick_samples
from kava.report.statistics.compare import Comparison
from kava.report.steps import StepsSaved, steps_saved
from kava.report.verdict.question import question
from kava.report.verdict.saved import of_steps
from kava.report.verdict.verdict import Verdict, decide
from kava.tasks.metric import Metric

# Arm → seed → row of one run, and arm → key of the configuration → value.
CostRows = Mapping[str, Mapping[str, CostRow]]


@dataclass(frozen=True)
class Fairness(Row):
    """Sentences on unequal terms and notes on test questions; `overlap` is experiment → what its token set records."""

    mismatches: Sequence[str]
    overlap: Mapping[str, Mapping[str, Any] | None]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {"equal": not self.mismatches} | vars(self)


@dataclass(frozen=True)
class Store(Row):
    """A teacher store, from its manifest; the ratio is that of `bytes` and `raw_bf16_bytes`."""

    manifest: str
    tokens: int | None
    bytes: int | None
    raw_bf16_bytes: int | None
    ratio: float | None
    codec: str
    bits_per_value: float | None


@dataclass(frozen=True)
class ReportedExperiment(Row):
    """What an experiment's own record says of it; `models` is role → name and scores of teacher and base student."""

    date: str
    notes: str
    verdict: str
    models: Mapping[str, Mapping[str, Any]]
    arms: int
    seeds: Sequence[str]


@dataclass(frozen=True)
class Report(Row):
    """What the page shows, and what stands in `ab_report.json`.

    Attributes
    ----------
    metrics
        The primary one first.
    arms, cost, cost_mean, kv_until, retrieval_over_shuffled
        By arm.
    arm_differences
        Dotted configuration key → arm → value, for the keys in which the arms differ.
    warnings
        Sentences, the worst first, with where numbers were not finite.
    references
        Further models that were not trained here, by name.
    start
        The base student at step 0 of every arm; None where that was not scored, or the arms began from several.
    unknown
        A sentence on numbers that evaluations of an older version do not have; empty if there are none.
    experiments
        By name, in a report over several; None in that of a run.
    """

    experiment: str
    preset: str
    metrics: tuple[Metric, ...]
    question: str
    verdict: Verdict
    teacher: ReferenceRow
    student_base: ReferenceRow
    references: Mapping[str, ReferenceRow]
    arms: Mapping[str, ArmRow]
    comparisons: Sequence[Comparison]
    against_base: Sequence[Comparison]
    controls: Sequence[str]
    retrieval_over_shuffled: Mapping[str, OverShuffled]
    cka: Mapping[str, list[list[float | None]]] | None
    stores: Mapping[str, Store]
    fidelity: Fidelity | None
    fairness: Fairness
    cost: CostRows
    cost_mean: Mapping[str, MeanCost]
    kv_until: Mapping[str, float]
    breakdown: Mapping[str, Sequence[Bin]]
    samples: Samples
    steps_saved: Sequence[StepsSaved]
    start: AtStep | None
    unknown: str
    arm_differences: Mapping[str, Mapping[str, Any]]
    configuration: Mapping[str, Any]
    provenance: Mapping[str, Any]
    curves: Sequence[CurveRow]
    inert: Sequence[str]
    warnings: Sequence[str]
    experiments: Mapping[str, ReportedExperiment] | None = None

    def to_dict(self) -> dict[str, Any]:
        """`ab_report.json`: plain JSON types, without NaN or infinity."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("metrics", "start")}
        if self.experiments is None:
            del numbers["experiments"]
        said = {"verdict": self.verdict.sentence, "verdict_parts": self.verdict, "breakdown": self.breakdown or None}
        plain: dict[str, Any] = jsonable(numbers | said)
        return plain


def _differences(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dotted configuration key → arm → value, for the keys in which the arms differ."""
    flat = {name: flatten(config) for name, config in arms.items()}
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    table = {key: {name: config.get(key) for name, config in flat.items()} for key in keys}
    return {key: row for key, row in table.items() if any(v != row[next(iter(row))] for v in row.values())}


def build_report(inputs: ReportInputs) -> Report:
    """Read the runs and compute every number that the page shows.

    Raises
    ------
    ValueError, FileNotFoundError
        If a file is missing or is not what its stage writes. Runs that do not fit together are no error:
        each is a sentence in `fairness.mismatches`, and what cannot be compared is None.
    """
    lost: list[str] = []
    runs = questions_apart(
        {
            arm: {seed: read_run(files, inputs.metrics, lost) for seed, files in inputs.runs.get(arm, {}).items()}
            for arm in inputs.arms
        }
    )
    teacher, base, *further = (
        read_evaluation(files.evaluation, inputs.metrics, lost)
        for files in (inputs.teacher, inputs.student_base, *inputs.references.values())
    )
    references = dict(zip(inputs.references, further, strict=True))
    metrics, floor = judged_by(inputs.metrics, runs, base)
    metric, start = metrics[0], base.at_steps.get(0) if inputs.common_start else None
    named = {"teacher": teacher, "base student": base} | {f"reference {name}": x for name, x in references.items()}
    named |= {f"{arm} (seed {seed})": run.evaluation for arm, seeds in runs.items() for seed, run in seeds.items()}

    arms = {arm: arm_row(config, runs[arm], inputs.seeds[arm], metrics) for arm, config in inputs.arms.items()}
    comparisons, refusals = compare_arms(inputs.comparisons, runs, inputs.seeds, metric)
    tokens = {name: read_json(path, lost) for name, path in inputs.tokens.items()}
    overlap = check_overlap(tokens)
    # Experiments may have no base student in common.
    against_base = compare_with_base(runs, base, inputs.seeds, comparisons, metric) if inputs.across is None else []
    unequal = check_training(runs, inputs.seeds) + check_evaluations(named, metrics) + refusals
    mismatches = unequal + overlap.mismatches + inputs.mismatches
    logged, broken = curves(runs)
    manifests = {name: read_json(path, lost) for name, path in inputs.stores.items()}
    codecs = [manifest["codec"] for manifest in manifests.values()]
    fidelity = read_fidelity(inputs.bench, codecs, lost) if inputs.bench else None
    cost = {arm: {seed: cost_row(run) for seed, run in seeds.items()} for arm, seeds in runs.items()}
    as_configured = {
        "arm_differences": _differences(inputs.arms),
        "configuration": inputs.config,
        "provenance": inputs.provenance,
    }
    shown: dict[str, dict[str, Any]] = jsonable(as_configured, lost=lost)
    inert = inert_runs(runs, inputs.arms, inputs.controls)
    at_steps = {arm: {seed: run.evaluation.at_steps for seed, run in seeds.items()} for arm, seeds in runs.items()}
    saved = steps_saved(at_steps, inputs.seeds, inputs.comparisons, inputs.controls, inputs.arms, start, metrics)
    inert_arms = list(dict.fromkeys(notice.arm for notice in inert))
    warnings = merged(run_notices(runs) + inert + broken) + token_warnings(tokens) + overlap.warnings
    return Report(
        experiment=inputs.experiment,
        preset=inputs.preset,
        metrics=metrics,
        question=question(inputs, comparisons),
        verdict=decide(
            arms,
            comparisons,
            inputs.controls,
            inputs.arms,
            metric,
            mismatches,
            inputs.across,
            against_base,
            inert_arms,
            floor,
            of_steps(saved, metric),
        ),
        teacher=reference_row(inputs.teacher, teacher, metrics),
        student_base=reference_row(inputs.student_base, base, metrics),
        references={name: reference_row(inputs.references[name], x, metrics) for name, x in references.items()},
        arms=arms,
        comparisons=comparisons,
        against_base=against_base,
        controls=inputs.controls,
        retrieval_over_shuffled=over_shuffled(inputs.arms, {name: arm.alignment for name, arm in arms.items()}),
        cka=first_cka(runs, inputs.arms),
        stores={name: _store(inputs.stores[name].as_posix(), manifest) for name, manifest in manifests.items()},
        fidelity=fidelity,
        fairness=Fairness(mismatches, overlap.found, overlap.notes),
        cost=cost,
        cost_mean={arm: mean_cost(list(cost[arm].values()), arms[arm]) for arm in runs},
        kv_until={arm: c["kv_until"] for arm, c in inputs.arms.items() if c.get("aligner") and "kv_until" in c},
        breakdown=break_down(runs, inputs.seeds, metric, inputs.breakdowns),
        samples=pick_samples(runs, metrics),
        steps_saved=saved,
        start=start,
        unknown=unknown_numbers(named, inputs.metrics),
        curves=logged,
        inert=inert_arms,
        warnings=warnings + metrics_warnings(runs) + lost_numbers(lost),
        **shown,
    )


def _store(path: str, manifest: Mapping[str, Any]) -> Store:
    codec = manifest["codec"]
    sizes = {key: manifest.get(key) for key in ("tokens", "bytes", "raw_bf16_bytes", "ratio")}
    return Store(path, **sizes, codec=codec["kind"], bits_per_value=codec.get("bits_per_value"))
