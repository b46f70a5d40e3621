"""Finished experiments with planted numbers: two seeds of three arms, and what any other shares with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from report_files import write_bench, write_evaluation, write_store, write_text_evaluation, write_tokens, write_training

from kava.report.build import Report, build_report
from kava.report.inputs import ReferenceFiles, ReportInputs, RunFiles
from kava.tasks import scored, task_of


class Planted(NamedTuple):
    """What an arm is and reaches: its configuration, accuracy, final centred cosine and projector parameters."""

    config: dict[str, Any]
    rate: float
    final: float
    parameters: int | None


LOSS = {"kind": "mercator", "beta": 0.01}
ARMS = {
    "flat": Planted({"aligner": {"kind": "flat", "mlp_ratio": 1.0}, "loss": LOSS}, 0.46, 0.80, 1_234_567),
    "structured": Planted({"aligner": {"kind": "structured"}, "loss": LOSS}, 0.58, 0.88, 4_321),
    "sft": Planted({"aligner": None, "loss": LOSS}, 0.36, 0.0, None),
}
REFERENCES = {"teacher": 0.94, "base": 0.21}
SEEDS = ("42", "43")
PROVENANCE = {
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "commit": "0123456789abcdef",
    "dirty": False,
    "hardware": "2 CPU cores",
    "command": "snakemake --cores 1 results/ab_report.html",
}


def answers(rng: np.random.Generator, hardness: np.ndarray, rate: float) -> np.ndarray:
    """Right or wrong by question; some questions are harder for every arm, as in life, so answers are correlated."""
    score = 0.7 * hardness + 0.3 * rng.random(len(hardness))
    return score < np.quantile(score, rate)


def nlls(rng: np.random.Generator, hardness: np.ndarray, mean: float) -> np.ndarray:
    """Negative log-likelihood by question, about `mean`; some questions are harder for every arm."""
    noise: np.ndarray = mean + 1.2 * (hardness - 0.5) + 0.15 * rng.standard_normal(len(hardness))
    return noise


def write_experiment(
    root: Path,
    name: str,
    arms: dict[str, Planted],
    seeds: tuple[str, ...],
    rng: np.random.Generator,
    n: int,
    steps: dict[str, int],
    layers: tuple[int, int] = (3, 2),
    spread: float = 0.0,
    references: dict[str, float] = REFERENCES,
    kind: str = "demo",
    **further: Any,
) -> ReportInputs:
    """Write all files of an experiment under `root`; `further` is what else its report is told.

    Of `kind` text, the rate of an arm or a reference is its mean negative log-likelihood. `steps` is by stage, and
    `spread` the standard deviation of an arm's rate over seeds.
    """
    hardness = rng.random(n)

    def evaluate(directory: Path, reached: float, model: str) -> Path:
        if kind == "text":
            return write_text_evaluation(directory, nlls(rng, hardness, reached), model)
        return write_evaluation(directory, answers(rng, hardness, reached), model)

    runs: dict[str, dict[str, RunFiles]] = {}
    for arm, (config, rate, final, parameters) in arms.items():
        for seed in seeds:
            place = root / name / arm / f"seed-{seed}"

            def train(part: str, stage: str) -> Path:
                planted = final, parameters, steps[stage]  # noqa: B023
                return write_training(place / part, config, seed, stage, *planted, layers=layers)  # noqa: B023

            reached = rate + rng.normal(0, spread) if spread else rate
            runs.setdefault(arm, {})[seed] = RunFiles(
                train("projector", "pretrain") if config["aligner"] is not None else None,
                train("student", "distill"),
                evaluate(place / "evaluation", reached, f"{arm}-{seed}"),
            )
    teacher, base = (
        ReferenceFiles(f"demo-{model}", evaluate(root / model, rate, model)) for model, rate in references.items()
    )
    return ReportInputs(
        experiment=name,
        preset=name,
        metrics=scored(task_of(kind), True),
        breakdowns=task_of(kind).breakdowns,
        arms={arm: planted.config for arm, planted in arms.items()},
        runs=runs,
        stores={"demo": write_store(root)},
        teacher=teacher,
        student_base=base,
        provenance=PROVENANCE,
        seeds={arm: list(seeds) for arm in arms},
        tokens={name: write_tokens(root)},
        **further,
    )


def finished_runs(root: Path, n: int = 500, seeds: tuple[str, ...] = SEEDS, **rates: float) -> ReportInputs:
    """Two seeds of three arms; `rates` overrides an arm's or a reference's accuracy."""
    configs = {arm: planted.config for arm, planted in ARMS.items()}
    return write_experiment(
        root,
        "demo",
        {arm: planted._replace(rate=rates.get(arm, planted.rate)) for arm, planted in ARMS.items()},
        seeds,
        np.random.default_rng(7),
        n,
        {"pretrain": 200, "distill": 400},
        references={model: rates.get(model, rate) for model, rate in REFERENCES.items()},
        comparisons=[("structured", "flat"), ("flat", "sft"), ("structured", "sft")],
        controls=["sft"],
        config={"preset": "demo", "seeds": [42, 43], "arms": configs, "train": {"steps": 400, "batch": [2, 16]}},
        bench=write_bench(root / "bench" / "demo-0123abcd" / "store.json"),
    )


@pytest.fixture(scope="module", name="report")
def report_of_two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(finished_runs(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module", name="numbers")
def numbers_of_two_seeds(report: Report) -> dict[str, Any]:
    """`ab_report.json` of the same runs."""
    return report.to_dict()


@pytest.fixture(name="runs")
def runs_of_one_seed(tmp_path: Path) -> ReportInputs:
    return finished_runs(tmp_path, n=60, seeds=("42",))
