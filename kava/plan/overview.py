"""The whole of a run: every stage, every arm, and the disk."""

from collections.abc import Iterator
from dataclasses import dataclass

from kava.config.answers import TeacherAnswers
from kava.config.data import FolderData
from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.config.specs import NoPretraining
from kava.config.training import ClosedForm, Distill, Pretrain
from kava.data.positions import Prompts, look
from kava.plan.disk import Disk, disk
from kava.plan.fixes import Fix, fixes
from kava.plan.geometry import read_geometry
from kava.plan.judging import Judged, LikelihoodNeed, as_it_comes, evaluation_of, writing_of
from kava.plan.memory import StageMemory
from kava.plan.needs import ExtractionNeed, Need, TrainingNeed
from kava.plan.streamed import settle
from kava.plan.tokens import TokenCount, count_tokens
from kava.plan.trace import parameter_counts
from kava.tasks import task_of

Needs = dict[str, dict[str, Need]]


@dataclass(frozen=True)
class StagePlan:
    """One stage."""

    memory: StageMemory  # of the arm (or model) that takes most
    largest: str | None  # its name; None for a stage that has no arms
    peaks: dict[str, int]  # arm → bytes
    too_large: list[str]  # arms that do not fit
    fixes: list[Fix]  # what would make the largest fit; empty if it does
    streamed: bool  # the teacher's weights come from the disk


@dataclass(frozen=True)
class Overview:
    """What a configuration takes; `fits` is about the memory of the GPU and the positions of the models."""

    budget_gib: float
    stages: dict[str, StagePlan]
    tokens: TokenCount
    disk: Disk
    prompts: Prompts

    @property
    def fits(self) -> bool:
        return self.prompts.lack is None and not any(stage.too_large for stage in self.stages.values())


def overview(jobs: Jobs) -> Overview:
    """Plan every stage of a configuration; nothing is run, loaded or downloaded.

    Raises
    ------
    UserError
        A model whose geometry is not known, or anything that `Jobs` refuses.
    """
    config = jobs.config
    count, needed = count_tokens(jobs), _by_stage(config)
    stages = {stage: _stage(of_stage, config.vram_budget_gib) for stage, of_stage in needed.items()}
    return Overview(config.vram_budget_gib, stages, count, _disk(jobs, count, needed), look(config))


def disk_alone(jobs: Jobs) -> Disk:
    """The disk of `overview`, in seconds; raises what that does."""
    return _disk(jobs, count_tokens(jobs), _by_stage(jobs.config))


def needs(config: Config) -> Iterator[tuple[str, str, Need]]:
    """Stage, arm (or model) and need, of everything that a configuration runs on the GPU."""
    task = task_of(config.data.kind)
    longest = config.max_length

    def phase(stage: str, name: str, settings: Pretrain | ClosedForm | Distill) -> tuple[str, str, Need]:
        of_arm = config.student, config.teacher, config.arms[name], settings
        return stage, name, TrainingNeed(stage, name, *of_arm, longest, config.kv, task.lengths)

    if isinstance(answers := config.data.answers, TeacherAnswers):
        yield "write", "", writing_of(config.teacher, answers, longest)
    yield "extract", "", settle(ExtractionNeed(config.teacher, longest, config.kv), config.vram_budget_gib)
    for name, arm in config.arms.items():
        if arm.aligner:
            drawn = NoPretraining.in_place_of(config.pretrain).as_phase()
            yield phase("pretrain", name, config.pretrain if arm.pretrain_projector else drawn)
    for name in config.arms:
        yield phase("distill", name, config.distill)
    hub = config.data.path if isinstance(config.data, FolderData) else None
    teacher = Judged(config.teacher, config.teacher.dtype)
    student = Judged(config.student, config.student.export_dtype, exported=True)
    further = {name: as_it_comes(source) for name, source in config.references.items()}
    for role, model in ({"teacher": teacher, "student": student} | further).items():
        settings = config.evaluation.of_teacher() if role == "teacher" else config.evaluation
        need = evaluation_of(task, model, settings, hub, longest)
        if role == "teacher" and isinstance(need, LikelihoodNeed):
            need = settle(need, config.vram_budget_gib)
        yield f"evaluate {role}", "", need


def _by_stage(config: Config) -> Needs:
    needed: Needs = {}
    for stage, name, need in needs(config):
        needed.setdefault(stage, {})[name] = need
    return needed


def _disk(jobs: Jobs, count: TokenCount, needed: Needs) -> Disk:
    config, phases = jobs.config, {stage: _phase(needed, stage) for stage in ("pretrain", "distill")}
    checkpoints = {stage: max(need.checkpoint() for need in arms) for stage, arms in phases.items() if arms}
    width = {"float32": 4, "bfloat16": 2}[config.student.export_dtype]
    student = parameter_counts(read_geometry(config.student)).all * width * (1 + len(config.evaluation.at_steps))
    projectors = [need.traced(step=False).projector for need in phases["pretrain"]]
    # A projector is kept by the stage that fits it and by the one that goes on with it.
    left_behind = len(config.seeds) * (len(config.arms) * student + 2 * sum(projectors))
    return disk(jobs, count, checkpoints, left_behind)


def _phase(needed: Needs, stage: str) -> list[TrainingNeed]:
    return [need for need in needed.get(stage, {}).values() if isinstance(need, TrainingNeed)]


def _stage(needed: dict[str, Need], budget_gib: float) -> StagePlan:
    memories = {name: need.memory() for name, need in needed.items()}
    largest = max(memories, key=lambda name: memories[name].peak)
    too_large = [name for name, memory in memories.items() if not memory.fits(budget_gib)]
    # An arm may fit the budget and not the allocator's share of it, with less in all than another.
    worst = largest if largest in too_large or not too_large else too_large[0]
    peaks = {name: memory.peak for name, memory in memories.items()}
    advice = fixes(needed[worst], budget_gib) if too_large else []
    streamed = isinstance(need := needed[worst], ExtractionNeed | LikelihoodNeed) and need.streamed
    return StagePlan(memories[worst], worst or None, peaks, too_large, advice, streamed)
