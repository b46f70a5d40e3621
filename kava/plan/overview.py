"""The whole of a run: every stage, every arm, and the disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kava.config.data import FolderData
from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.data.positions import Prompts, look
from kava.plan.disk import Disk, disk
from kava.plan.geometry import read_geometry
from kava.plan.memory import StageMemory
from kava.plan.mend import Mend, mends
from kava.plan.needs import Extraction, Need, Training, evaluation_of
from kava.plan.tokens import TokenCount, count_tokens
from kava.plan.trace import parameter_counts
from kava.tasks import task_of


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes
    ----------
    memory
        Of the arm (or model) that takes most.
    largest
        Its name; None for a stage that has no arms.
    peaks, too_large
        Arm → its peak in bytes; and the arms that do not fit.
    mends
        What would make the largest fit; empty if it does.
    """

    memory: StageMemory
    largest: str | None
    peaks: dict[str, int]
    too_large: list[str]
    mends: list[Mend]


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


def overview(plan: Jobs) -> Overview:
    """Jobs every stage of a configuration; nothing is run, loaded or downloaded.

    Raises
    ------
    UserError
        A model whose geometry is not known, or anything that `Jobs` refuses.
    """
    config = plan.config
    count, needed = count_tokens(plan), _by_stage(config)
    stages = {stage: _stage(of_stage, config.vram_budget_gib) for stage, of_stage in needed.items()}
    return Overview(config.vram_budget_gib, stages, count, _disk(plan, count, needed), look(config))


def disk_alone(plan: Jobs) -> Disk:
    """The disk of `overview`, in seconds; raises what that does."""
    return _disk(plan, count_tokens(plan), _by_stage(plan.config))


def _by_stage(config: Config) -> dict[str, dict[str, Need]]:
    needed: dict[str, dict[str, Need]] = {}
    for stage, name, need in needs(config):
        needed.setdefault(stage, {})[name] = need
    return needed


def _disk(plan: Jobs, count: TokenCount, needed: dict[str, dict[str, Need]]) -> Disk:
    checkpoints: dict[str, int] = {
        stage: max(need.checkpoint() for need in needed[stage].values() if isinstance(need, Training))
        for stage in ("pretrain", "distill")
        if stage in needed
    }
    return disk(plan, count, checkpoints, _left_behind(plan.config, needed))


def needs(config: Config) -> Iterator[tuple[str, str, Need]]:
    """Stage, arm (or model) and need, of everything that a configuration runs on the GPU."""
    task = task_of(config.data.kind)
    teacher, student, kv = config.teacher.model_dump(), config.student.model_dump(), config.kv.model_dump()
    yield "extract", "", Extraction(teacher, config.max_length, kv)
    for stage in ("pretrain", "distill"):
        for name, arm in config.arms.items():
            settings: dict[str, Any] = getattr(config, stage).model_dump()
            if stage == "pretrain":
                if arm.aligner is None:
                    continue
                settings |= {} if arm.pretrain_projector else {"steps": 0}
            of_arm = arm.model_dump(), settings, config.max_length, kv, task.lengths
            yield stage, name, Training(stage, name, student, teacher, *of_arm)
    evaluation = config.evaluation.model_dump()
    hub = config.data.path if isinstance(config.data, FolderData) else None
    for role, source in (("teacher", teacher), ("student", student)):
        yield f"evaluate {role}", "", evaluation_of(task, source, evaluation, hub, config.max_length)


def _stage(needed: dict[str, Need], budget_gib: float) -> StagePlan:
    memories = {name: need.memory() for name, need in needed.items()}
    largest = max(memories, key=lambda name: memories[name].peak)
    too_large = [name for name, memory in memories.items() if not memory.fits(budget_gib)]
    # An arm may fit the budget and not the allocator's share of it, with less in all than another.
    worst = largest if largest in too_large or not too_large else too_large[0]
    return StagePlan(
        memories[worst],
        worst or None,
        {name: memory.peak for name, memory in memories.items()},
        too_large,
        mends(needed[worst], budget_gib) if too_large else [],
    )


def _left_behind(config: Config, needed: dict[str, dict[str, Need]]) -> int:
    """Bytes of the students and projectors of all arms and seeds."""
    width = {"float32": 4, "bfloat16": 2}[config.student.export_dtype]
    student = parameter_counts(read_geometry(config.student.model_dump())).all * width
    projectors = [
        n.traced(step=False).projector for n in needed.get("pretrain", {}).values() if isinstance(n, Training)
    ]
    # A projector is kept by the stage that fits it and by the one that goes on with it.
    return len(config.seeds) * (len(config.arms) * student + 2 * sum(projectors))
