"""The plan of one stage at its start: a run that cannot fit stops before it loads anything."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kava.config.job import Job, Runtime
from kava.config.kv import Bf16Codec, KvStore
from kava.config.specs import WriteSpec
from kava.device import GIB, choose_device
from kava.errors import UserError
from kava.files import read_json
from kava.models.load import load_model_config
from kava.plan.fixes import explained
from kava.plan.judging import Judged, LikelihoodNeed, as_it_comes, evaluation_of, writing_of
from kava.plan.needs import ExtractionNeed, Need, TrainingNeed
from kava.plan.streamed import settle
from kava.tasks import task_of

log = logging.getLogger("kava")

# An arm that reads no store is trained alike whatever it would hold.
NO_STORE = KvStore(codec=Bf16Codec(), keys="post_rope")


def check_fits(job: Job, runtime: Runtime) -> Runtime:
    """Compare the memory that a stage would take with `vram_budget_gib`; on a CPU, nothing is compared.

    Returns
    -------
    Runtime
        With the teacher's placement, where it is `auto` and this stage may stream it.

    Raises
    ------
    UserError
        It does not fit; the sentence names what is too large and which settings fix it.
    """
    need = _check(runtime, lambda: need_of(job, runtime))
    if not isinstance(need, ExtractionNeed | LikelihoodNeed) or _of_a_student(job):
        return runtime
    if runtime.teacher.placement == "auto":
        log.info(
            "the teacher is %s: in memory as a whole it needs %.2f GiB (vram_budget_gib: %g)",
            need.teacher.placement, need.at("resident").memory().peak / GIB, runtime.vram_budget_gib,
        )  # fmt: skip
    return runtime.model_copy(update={"teacher": need.teacher})


def _of_a_student(job: Job) -> bool:
    return job.stage == "evaluate" and job.spec.reference != "teacher"


def check_writing_fits(job: Job[WriteSpec], runtime: Runtime, longest_prompt: int) -> None:
    """The same for the teacher's answers to training questions, before there are tokens; raises what that does."""
    _check(runtime, lambda: ("write", writing_of(runtime.teacher, job.spec.key.answers, longest_prompt)))


def _check(runtime: Runtime, planned: Callable[[], tuple[str, Need]]) -> Need | None:
    """The need that was compared; None if none was."""
    if choose_device(runtime.device).type == "cpu":
        return None
    try:
        for source in (runtime.teacher, runtime.student):
            load_model_config(source)  # a plan downloads nothing, and a stage is about to
        who, need = planned()
    except UserError as error:
        log.warning("warning: it is not known whether this stage fits the GPU: %s", error)
        return None
    if not need.memory().fits(runtime.vram_budget_gib):
        raise UserError(explained(who, need, runtime.vram_budget_gib))
    return need


def need_of(job: Job, runtime: Runtime) -> tuple[str, Need]:
    """Name and need of a job of stage extract, pretrain, distill or evaluate."""
    tokens: dict[str, Any] = read_json(job.inputs["tokens"])["spec"]
    longest: int = tokens["max_length"]
    data = tokens["data"]["source"]
    task = task_of(data["kind"])
    if job.stage == "extract":
        extraction = ExtractionNeed(runtime.teacher, longest, job.spec.key)
        return "extract", settle(extraction, runtime.vram_budget_gib)
    if job.stage == "evaluate":
        role = job.spec.reference
        judged = Judged(runtime.student, runtime.student.export_dtype, exported=True)
        if role == "teacher":
            judged = Judged(runtime.teacher, runtime.teacher.dtype)
        elif role:
            judged = as_it_comes(runtime.reference(role))
        need = evaluation_of(task, judged, job.spec.key.evaluation, data.get("hub"), longest)
        if role == "teacher" and isinstance(need, LikelihoodNeed):
            need = settle(need, runtime.vram_budget_gib)
        return f"evaluate of {role or 'the student'}", need
    kv = _kv_of(job.inputs["store"]) if "store" in job.inputs else NO_STORE
    models, settings = (runtime.student, runtime.teacher), runtime.settings(job)
    training = TrainingNeed(job.stage, job.spec.name, *models, job.spec.arm, settings, longest, kv, task.lengths)
    return f"{job.stage} of {job.spec.name}", training


def _kv_of(manifest: Path) -> KvStore:
    """How a store was made."""
    spec = read_json(manifest)["spec"]
    return KvStore.model_validate({name: spec[name] for name in KvStore.model_fields if name in spec})
