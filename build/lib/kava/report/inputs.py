"""What a report is made from: where the files of the finished runs are, and what was meant to be compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
    arms : dict
        Arm name → its configuration. `aligner` is None for an arm without KV loss, else it has a `kind`.
    runs : dict
        Arm name → seed (as a string) → files.
    stores : dict
        Store name → its `manifest.json`.
    teacher, student_base : ReferenceFiles
        The two reference lines.
    comparisons : list of (str, str)
        Declared pairs (a, b); the sign of a difference is a − b, the metric is strict match.
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
