# The plan that all rules read. `config` holds what --config and --configfile gave; config.yaml and the preset are
# merged beneath it by kava, whose rules of merging (a new `kind` replaces its mapping) Snakemake does not know.
import re
import sys
from shlex import quote

from snakemake.exceptions import WorkflowError

from kava.config import Plan, load_config
from kava.errors import UserError

try:
    PLAN = Plan(load_config(f"{workflow.basedir}/config.yaml", config))
    PLAN.report
except UserError as error:
    raise WorkflowError(str(error)) from None


# A limit of 1 unless --resources gpu=N says otherwise: locally a resource without a limit limits nothing, and two
# models would share the 8 GB.
workflow.global_resources.setdefault("gpu", 1)


wildcard_constraints:
    arm="|".join(map(re.escape, PLAN.config.arms)),
    seed=r"\d+",


# Settings of how, not what: they stand in the shell text only as names, so that changing them reruns nothing.
PYTHON = sys.executable
RUNTIME = f"--device {PLAN.config.device} --tracker {PLAN.config.tracker}"
RUN = PLAN.experiment / "{arm}" / "seed-{seed}"


def arm_job(stage, wildcards):
    """Job of one arm and seed."""
    return getattr(PLAN, stage)(wildcards.arm, int(wildcards.seed))


def arm_inputs(stage):
    """Input function: what the job of one arm and seed reads."""
    return lambda wildcards: {
        name: ancient(path) if name in ("tokens", "store") else path
        for name, path in arm_job(stage, wildcards).inputs.items()
    }


def job_params(job):
    """Params function of a job without wildcards; a plain string would be searched for `{wildcards}`."""
    return lambda wildcards: job.params


def arm_params(stage):
    """Params function: what the job of one arm and seed depends on, as canonical JSON."""
    return lambda wildcards: arm_job(stage, wildcards).params


def input_options(_wildcards, input):
    """`--input NAME=PATH …` for all named inputs of a job."""
    return " ".join(
        f"--input {name}={quote(str(path))}" for name, path in input.items()
    )
