"""What a report is made from: where the files of the finished runs are, and what was meant to be compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.files import read_json
from kava.tasks import scored, task_of
from kava.tasks.base import Breakdown
from kava.tasks.metric import Metric

# What the name of a further model among a report's inputs begins with.
REFERENCE = "reference/"


@dataclass(frozen=True)
class RunFiles:
    """The directories of one arm and seed.

    Attributes
    ----------
    projector : Path or None
        Output of the pretrain stage; None for an arm without an aligner.
    student, evaluation : Path
        Outputs of the distill and evaluate stages.
    """

    projector: Path | None
    student: Path
    evaluation: Path


@dataclass(frozen=True)
class ReferenceFiles:
    """A model that was evaluated but not trained here: the teacher, or the student before distillation."""

    model: str
    evaluation: Path


@dataclass(frozen=True)
class ReportInputs:
    """Everything `build_report` reads.

    Attributes
    ----------
    experiment, preset : str
        Names shown in the header.
    metrics : tuple of Metric
        What answers are judged by, the task's primary metric first.
    breakdowns : tuple of Breakdown
        By what questions are grouped, beside their length.
    arms : dict
        Arm name → its configuration. `aligner` is None for an arm without KV loss, else it has a `kind`.
    runs : dict
        Arm name → seed (as a string) → files.
    stores : dict
        Store name → its `manifest.json`.
    teacher, student_base : ReferenceFiles
        The two reference lines.
    references : dict
        Further models that were not trained here, by name.
    common_start : bool
        Whether `student_base` is what all arms began from.
    comparisons : list of (str, str)
        Declared pairs (a, b); the sign of a difference is a − b.
    controls : list of str
        Arms without usable KV signal: neither an aligner nor a CKA loss, or the KV of another example.
    config, provenance : dict
        Shown as they are: the resolved configuration; versions, commit, hardware, command.
    seeds : dict
        Arm name → its declared seeds (as strings). A mean over fewer would be one over those that went well.
    bench : Path or None
        What `kava bench store` measured on the run's teacher; None leaves size against fidelity out.
    tokens : dict
        Experiment → manifest of its token set, which says whether test questions stand in the training data.
    mismatches : list of str
        Sentences on unequal terms that no file tells, for the fairness checks.
    across : list of (str, str) or None
        Of `comparisons`, the arms of the same name in two experiments; None for the report of one experiment's run.
    """

    experiment: str
    preset: str
    metrics: tuple[Metric, ...]
    breakdowns: tuple[Breakdown, ...]
    arms: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, RunFiles]]
    stores: dict[str, Path]
    teacher: ReferenceFiles
    student_base: ReferenceFiles
    comparisons: list[tuple[str, str]]
    controls: list[str]
    config: dict[str, Any]
    provenance: dict[str, Any]
    seeds: dict[str, list[str]]
    bench: Path | None = None
    tokens: dict[str, Path] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)
    across: list[tuple[str, str]] | None = None
    references: dict[str, ReferenceFiles] = field(default_factory=dict)
    common_start: bool = True

    def __post_init__(self) -> None:
        unknown = sorted({name for pair in self.comparisons for name in pair} | set(self.controls) | set(self.runs))
        unknown = [name for name in unknown if name not in self.arms]
        if unknown:
            raise ValueError(
                f"the report names arms that the configuration does not have: {', '.join(unknown)}; "
                f"configured are {', '.join(self.arms)}"
            )
        for arm, runs in self.runs.items():
            if stray := [seed for seed in runs if seed not in self.seeds[arm]]:
                raise ValueError(
                    f"arm {arm!r} has a run of seed {stray[0]}; its seeds are {', '.join(self.seeds[arm])}"
                )
        selves = [a for a, b in self.comparisons if a == b]
        if selves:
            raise ValueError(f"arm {selves[0]!r} is compared with itself; a comparison needs two arms")


def report_inputs(spec: Mapping[str, Any], inputs: Mapping[str, Path], provenance: Mapping[str, Any]) -> ReportInputs:
    """Inputs of the report of one experiment.

    Parameters
    ----------
    spec
        The resolved configuration, with `seeds`, `comparisons` and `controls`.
    inputs
        `teacher`, `student_base`, `reference/<name>` of each further model, `tokens`, `store`, `bench`, and
        `<arm>/seed-<n>/<stage>` of each run: manifests.
    provenance
        Shown as it is.
    """
    controls_last = sorted(spec["arms"], key=lambda arm: (arm in spec["controls"], arm))
    runs: dict[str, dict[str, RunFiles]] = {arm: {} for arm in controls_last}
    for name, path in inputs.items():
        run, _, stage = name.rpartition("/")
        arm, _, seed = run.partition("/seed-")
        if is_run(name) and stage == "evaluation":
            projector = inputs.get(f"{run}/projector")
            runs[arm][seed] = RunFiles(projector and projector.parent, inputs[f"{run}/student"].parent, path.parent)
    kind = spec["data"]["kind"]
    return ReportInputs(
        experiment=spec["experiment"],
        preset=spec["preset"],
        metrics=scored(task_of(kind), generated(spec)),
        breakdowns=task_of(kind).breakdowns,
        arms={arm: spec["arms"][arm] for arm in controls_last},
        runs=runs,
        stores={read_json(inputs["store"])["name"]: inputs["store"]},
        teacher=_reference(inputs["teacher"]),
        student_base=_reference(inputs["student_base"]),
        comparisons=[(a, b) for a, b in spec["comparisons"]],
        controls=spec["controls"],
        config={name: value for name, value in spec.items() if name != "controls"},
        provenance=dict(provenance),
        seeds={arm: [str(seed) for seed in spec["seeds"]] for arm in controls_last},
        bench=inputs.get("bench"),
        tokens={spec["experiment"]: inputs["tokens"]},
        references={
            name.removeprefix(REFERENCE): _reference(path)
            for name, path in inputs.items()
            if name.startswith(REFERENCE) and not is_run(name)
        },
    )


def is_run(name: str) -> bool:
    """Whether an input of a report is of a run, `<arm>/seed-<n>/<stage>`; names of arms and models have no slash."""
    return name.count("/") == 2


def generated(spec: Mapping[str, Any]) -> bool:
    """Whether answers were generated, as a configuration says; one of before had no such setting, and they were."""
    return bool(spec.get("evaluation", {}).get("generate", True))


def _reference(manifest: Path) -> ReferenceFiles:
    return ReferenceFiles(model=read_json(manifest)["model"], evaluation=manifest.parent)
