# The plan that all rules read. `config` holds what --config and --configfile gave; config.yaml and the preset are
# merged beneath it by kava, whose rules of merging (a new `kind` replaces its mapping) Snakemake does not know.
import os
import re
import sys
import time
from shlex import join, quote

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from kava.commandline import print_whatever_the_locale
from kava.config import Jobs, Runtime, load_config
from kava.config.job import processes
from kava.config.load import check_typed
from kava.errors import UserError
from kava.faults import faults_as_sentences, user_name
from kava.files import canonical_json, read_json
from kava.terminal.lines import show_jobs

# A line per job; a job of a cluster, in which Snakemake runs again, keeps all that Snakemake says.
if workflow.is_main_process:
    show_jobs(logger, workflow.output_settings)

STARTED = time.time()
# Snakemake asks for the user's name, which a container's may lack.
if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
    os.environ.update(LOGNAME=user_name(os.getuid()).replace(" ", "-"))
print_whatever_the_locale()
try:
    with faults_as_sentences():
        check_typed(workflow.config_settings.configfiles, sys.argv[1:])
        PLAN = Jobs(load_config(f"{workflow.basedir}/config.yaml", config))
        PLAN.report
except UserError as error:
    raise WorkflowError(str(error)) from None


RUNTIME = Runtime.of(PLAN.config)
# A limit, unless --resources gpu=N says otherwise, of what one job takes: locally a resource without a limit limits
# nothing, and two models would share the 8 GB.
workflow.global_resources.setdefault(
    "gpu",
    max(
        PLAN.config.pretrain.as_phase().num_processes, PLAN.config.distill.num_processes
    ),
)


# A person who types another loss under a name that is taken may not mean to lose what stands there.
if workflow.is_main_process:
    from kava.report.changed import changed_settings

    if told := changed_settings(
        PLAN.experiment, PLAN.report.spec.model_dump(mode="json")
    ):
        print(told, file=sys.stderr)


# The answer, and where it stands, if this run made the report.
onsuccess:
    page, numbers = PLAN.report.output, PLAN.report.output.with_suffix(".json")
    if numbers.is_file() and numbers.stat().st_mtime > STARTED:
        print(f"\n{read_json(numbers)['verdict']}\n{page.resolve()}")


# What a failed job leaves stays: outputs are written whole and last, so one that is there is right, and in a shared
# cache it may be what another clone has just sealed.
onstart:
    workflow.execution_settings.keep_incomplete = True


# The system that the pins are tested on, for --sdm apptainer. KAVA has no image of its own yet: install it there.
container: "docker://python:3.11-bookworm"


wildcard_constraints:
    arm="|".join(map(re.escape, PLAN.config.arms)),
    seed=r"\d+",


envvars:
    "PATH",


# How a stage runs, not what it makes: in the environment, so that a change of it reruns nothing.
os.environ.update(
    PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
    KAVA_RUNTIME=canonical_json(RUNTIME.model_dump()),
)
# In a cluster's job Snakemake runs again; what a person typed came there with the environment.
if workflow.is_main_process:
    os.environ.update(KAVA_COMMAND=join(["snakemake", *sys.argv[1:]]))
RUN = PLAN.experiment / "{arm}" / "seed-{seed}"


def arm_job(stage, wildcards):
    """Job of one arm and seed."""
    return getattr(PLAN, stage)(wildcards.arm, int(wildcards.seed))


def arm_gpus(stage):
    """Resource function: the GPUs of the job of one arm and seed, one per process."""
    return lambda wildcards: processes(arm_job(stage, wildcards))


# What a scheduler is asked for; without one it limits nothing, and threads stay 1, since other sums would give other
# bytes. Host memory is that of the reference pair: weights on their way to the GPU, CUDA's libraries, a few shards.
MODEL_MB, TEXT_MB = 16_000, 4_000
# One to compute, one that reads the store ahead.
CPUS_PER_MODEL = 2


def memory(megabytes, processes=lambda wildcards: 1):
    """Resource function: host memory of a job; twice as much once it was killed, which may have been for that."""
    return lambda wildcards, attempt: (
        megabytes * min(attempt, 2) * processes(wildcards)
    )


def cpus(processes):
    """Resource function: CPUs of a job of several processes."""
    return lambda wildcards: CPUS_PER_MODEL * processes(wildcards)


def arm_inputs(stage):
    """Input function: what the job of one arm and seed reads."""
    return lambda wildcards: {
        name: ancient(path) if name in ("tokens", "store", "teacher") else path
        for name, path in arm_job(stage, wildcards).inputs.items()
    }


def extract_parts():
    """Markers of the extraction jobs that share a store's shards; one job alone needs none."""
    jobs = PLAN.config.extract_jobs
    return [PLAN.extract_part(n + 1).output for n in range(jobs)] if jobs > 1 else []


def job_params(job):
    """Params function of a job without wildcards; a plain string would be searched for `{wildcards}`."""
    return lambda wildcards: job.params


def arm_params(stage):
    """Params function: what the job of one arm and seed depends on, as canonical JSON."""
    return lambda wildcards: arm_job(stage, wildcards).params


def input_options(_wildcards, input):
    """`--input NAME=PATH …` for all named inputs of a job that are one file."""
    return " ".join(
        f"--input {name}={quote(str(path))}"
        for name, path in input.items()
        if isinstance(path, str)
    )
