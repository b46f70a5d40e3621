"""The files of finished runs as values; everything else in the report works from these."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kava.files import sha256_file
from kava.grades import Grade, collapsed, grade
from kava.report.clean import Row
from kava.report.evaluated import Evaluation, read_evaluation
from kava.report.inputs import RunFiles
from kava.report.reading import NO_COST, Cost, read_cost, read_json, read_lines
from kava.tasks.metric import Metric

# What the training stages log at a step.
LOGGED = ("loss", "ce", "kv", "codi", "logit_kd", "cka", "hidden", "attention", "cos_sim", "cos_sim_centered")
# Alignment that is shown by layer and head.
MAPPED = ("cos_sim_centered", "r2")

Heads = list[list[list[float | None]]]


@dataclass(frozen=True)
class Alignment(Row):
    """How well projected teacher KV matched student KV on held-out examples; None where that is not known.

    Attributes
    ----------
    per_head
        Of `MAPPED`, the numbers by layer and head, `[2][L][H]`, keys first; None where they are not recorded.
    collapsed
        Whether the projection predicts little more than each channel's mean; of an arm, in any seed.
    """

    cos_sim: float | None = None
    cos_sim_centered: float | None = None
    cos_sim_constant: float | None = None
    angular_distance: float | None = None
    alignment_accuracy: float | None = None
    r2: float | None = None
    retrieval_at_1: float | None = None
    mag_ratio: float | None = None
    per_head: Mapping[str, Heads | None] = field(default_factory=lambda: dict.fromkeys(MAPPED))
    collapsed: bool = False

    @property
    def grade(self) -> Grade | None:
        """Word for the centred cosine."""
        return grade(self.cos_sim_centered)

    @property
    def means(self) -> dict[str, float | None]:
        """Metric → mean over K, V, layers and heads."""
        return {name: value for name, value in asdict(self).items() if name not in ("per_head", "collapsed")}

    def to_dict(self) -> dict[str, Any]:
        """As an arm has it in the JSON."""
        return {**self.means, "grade": self.grade, "collapsed": self.collapsed, "per_head": self.per_head}


ALIGNMENT = tuple(Alignment().means)


@dataclass(frozen=True)
class Logged:
    """A line of `metrics.jsonl`: step and, of `LOGGED`, the numbers that it has, finite or not."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """One pretrain or distill stage; what its manifest does not record is None.

    `metrics` is the digest of the code that measured `alignment`. `cka` is that of the base student's layers with the
    teacher's, `keys` and `values`, `[L_s][L_t]`; `files` are the
    hashes of the trained model's.
    """

    optimizer_steps: int | None = None
    train_tokens: int | None = None
    data_order_sha256: str | None = None
    initial_student_sha256: str | None = None
    projector_parameters: int | None = None
    alignment: Alignment | None = None
    metrics: str | None = None
    warnings: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    cka: Mapping[str, list[list[float | None]]] | None = None
    cost: Cost = NO_COST
    logged: Sequence[Logged] = ()


@dataclass(frozen=True)
class FinishedRun:
    """Everything one arm left behind for one seed."""

    pretrain: Training | None
    distill: Training
    evaluation: Evaluation


# Arm → seed → run.
Runs = Mapping[str, Mapping[str, FinishedRun]]


def read_alignment(recorded: Mapping[str, Any] | None) -> Alignment | None:
    """From a manifest; None for an arm without an aligner."""
    if not recorded:
        return None
    heads = recorded.get("per_head") or {}
    return Alignment(
        **{name: recorded.get(name) for name in ALIGNMENT},
        per_head={name: heads.get(name) for name in MAPPED},
        collapsed=collapsed(recorded.get("cos_sim"), recorded.get("r2")),
    )


def read_training(directory: Path, lost: list[str]) -> Training:
    """Read `manifest.json`, `cost.json` and `metrics.jsonl` of a training stage.

    What `kava measure` wrote of this very student, in `alignment.json`, replaces what training measured.
    """
    manifest, cost = read_json(directory / "manifest.json", lost), read_cost(directory, lost)
    anew = directory / "alignment.json"
    if anew.is_file() and (later := read_json(anew, lost))["student"] == sha256_file(directory / "manifest.json"):
        former = manifest.get("measured", {}).get("warnings", [])
        kept = [sentence for sentence in manifest["warnings"] if sentence not in former]
        manifest |= {name: later[name] for name in ("alignment", "measured")}
        manifest["warnings"] = kept + later["measured"]["warnings"]
    plain = ("optimizer_steps", "train_tokens", "data_order_sha256", "initial_student_sha256", "projector_parameters")
    return Training(
        **{name: manifest.get(name) for name in plain},
        alignment=read_alignment(manifest.get("alignment")),
        metrics=manifest.get("measured", {}).get("metrics"),
        warnings=manifest.get("warnings") or (),
        files=manifest.get("files") or {},
        cka=manifest.get("cka") or None,
        cost=cost,
        logged=[
            Logged(line["step"], {name: line[name] for name in LOGGED if line.get(name) is not None})
            for line in read_lines(directory / "metrics.jsonl")
        ],
    )


def read_run(files: RunFiles, metrics: Sequence[Metric], lost: list[str]) -> FinishedRun:
    """Read all stages of one arm and seed."""
    return FinishedRun(
        None if files.projector is None else read_training(files.projector, lost),
        read_training(files.student, lost),
        read_evaluation(files.evaluation, metrics, lost),
    )


def questions_apart(runs: Runs) -> Runs:
    """Runs of which equal doc_ids name equal questions: in another set the same doc_id names another question.

    Where the runs answered several sets, the digest of its set stands before each doc_id, so that nothing finds a
    question in common between two sets; else they stay as they are.
    """

    def marked(run: FinishedRun) -> FinishedRun:
        digest = str(run.evaluation.questions_sha256)[:10]
        answers = {f"{digest}:{doc}": answer for doc, answer in run.evaluation.answers.items()}
        return replace(run, evaluation=replace(run.evaluation, answers=answers))

    if len({run.evaluation.questions_sha256 for seeds in runs.values() for run in seeds.values()}) < 2:
        return runs
    return {arm: {seed: marked(run) for seed, run in seeds.items()} for arm, seeds in runs.items()}
