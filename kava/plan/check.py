"""The plan of one stage at its start: a run that cannot fit stops before it loads anything."""

import logging
from typing import Any

import torch

from kava.config.job import Job, Runtime
from kava.device import choose_device
from kava.errors import UserError
from kava.files import read_json
from kava.models.load import load_model_config
from kava.plan.fixes import explained
from kava.plan.geometry import read_geometry
from kava.plan.needs import ExtractionNeed, Need, TrainingNeed, evaluation_of
from kava.tasks import task_of

log = logging.getLogger("kava")

# An arm that reads no store is trained alike whatever it would hold.
NO_STORE: dict[str, Any] = {"codec": {"kind": "bf16"}, "signals": {"topk_logits": 0}, "keys": "post_rope"}


def check_fits(job: Job, runtime: Runtime) -> None:
    """Compare the memory that a stage would take with `vram_budget_gib`; on a CPU, nothing is compared.

    Raises
    ------
    UserError
        It does not fit; the sentence names what is too large and which settings fix it.
    """
    if choose_device(runtime.device).type == "cpu":
        return
    try:
        for source in (runtime.teacher, runtime.student):
            load_model_config(source)  # a plan downloads nothing, and a stage is about to
        who, need = need_of(job, runtime)
    except UserError as error:
        log.warning("warning: it is not known whether this stage fits the GPU: %s", error)
        return
    if not need.memory().fits(runtime.vram_budget_gib):
        raise UserError(explained(who, need, runtime.vram_budget_gib))


def need_of(job: Job, runtime: Runtime) -> tuple[str, Need]:
    """Name and need of a job of stage extract, pretrain, distill or evaluate."""
    tokens: dict[str, Any] = read_json(job.inputs["tokens"])["spec"]
    longest: int = tokens["max_length"]
    data = tokens["data"]["source"]
    task = task_of(data["kind"])
    if job.stage == "extract":
        return "extract", ExtractionNeed(runtime.teacher.model_dump(), longest, job.spec.key.model_dump())
    if job.stage == "evaluate":
        role = job.spec.reference
        source = (runtime.teacher if role == "teacher" else runtime.student).model_dump()
        if role == "student_base":  # as it comes
            source = source | {"dtype": str(read_geometry(source).dtype or torch.float32).removeprefix("torch.")}
        need = evaluation_of(task, source, job.spec.key.evaluation.model_dump(), data.get("hub"), longest)
        return f"evaluate of {role or 'the student'}", need
    arm: dict[str, Any] = job.spec.arm.model_dump()
    kv = read_json(job.inputs["store"])["spec"] if "store" in job.inputs else NO_STORE
    name, settings = job.spec.name, runtime.settings(job).model_dump()
    models = runtime.student.model_dump(), runtime.teacher.model_dump()
    return f"{job.stage} of {name}", TrainingNeed(job.stage, name, *models, arm, settings, longest, kv, task.lengths)
