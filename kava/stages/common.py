"""What all stages share: their options, who may work beside them, and the call of the room that does the work."""

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from kava.commandline import CONFIGURATION, command_parser, load_jobs, option
from kava.config.job import Body, Job, Runtime, processes
from kava.config.jobs import Jobs
from kava.config.schema import Tracker
from kava.config.specs import SPECS
from kava.errors import UserError
from kava.exits import exit_status, log_to_stderr
from kava.faults import not_writable
from kava.files import read_json
from kava.locks import Claim, claim, holder, locked
from kava.store.admin.inventory import KEYED, SHARED_MARK
from kava.text import from_outside

log = logging.getLogger("kava")
RUNTIME_VARIABLE = "KAVA_RUNTIME"

# What makes an input of another stage's, where it is not the stage before.
MAKERS = {"teacher": "`kava evaluate --reference teacher` with the same configuration"}

BesideOthers = Literal["refuse", "wait", "share"]


def stage_main(
    stage: str,
    documentation: str,
    argv: list[str] | None,
    select: Callable[[Jobs, argparse.Namespace], Job],
    load_run: Callable[[argparse.Namespace], Body] | None = None,
    *,
    options: dict[str, str] | None = None,
    beside_others: BesideOthers = "refuse",
    fits: bool = False,
) -> int:
    """Parse the options of a stage, run it, and return the exit status.

    Parameters
    ----------
    stage, documentation
        Name and docstring of the stage's module.
    argv
        Arguments; None for those of the process.
    select
        Picks the job of a configuration, given the parsed options.
    load_run
        Returns the function that does the work, given the parsed options; None for the job's own.
    options
        Options of this stage alone, name → help.
    beside_others
        While another process works in the output folder: `refuse` to start, `wait` for it (it does the same work in a
        shared cache), or `share` the work, of which the stage takes care.
    fits
        Refuse to start what does not fit the GPU by its plan.
    """
    own = (option(f"--{name}", help=text) for name, text in (options or {}).items())
    parser = command_parser(f"kava {stage}", documentation, *own, *CONFIGURATION)
    parser.add_argument("--spec", metavar="JSON", help="what the stage depends on (default: from the configuration)")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=PATH", help="an input file, in place of the default one"
    )
    parser.add_argument("--output", type=Path, help="the file to write last, in place of the default one")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: from the configuration")
    parser.add_argument("--tracker", choices=get_args(Tracker), help="default: from the configuration")
    parser.add_argument("--json", action="store_true", help="print the finished manifest on stdout")
    arguments = parser.parse_args(argv)
    log_to_stderr()
    return exit_status(f"kava {stage}", lambda: _run(stage, arguments, select, load_run, beside_others, fits))


def _job(
    stage: str, arguments: argparse.Namespace, select: Callable[[Jobs, argparse.Namespace], Job]
) -> tuple[Job, Runtime]:
    for pair in arguments.input:
        if "=" not in pair:
            raise UserError(f"--input {pair!r}: expected NAME=PATH")
    inputs = {name: Path(path) for name, path in (pair.split("=", 1) for pair in arguments.input)}
    if arguments.spec:
        if not arguments.output or RUNTIME_VARIABLE not in os.environ:
            raise UserError(f"--spec needs --output, --input for what the stage reads, and ${RUNTIME_VARIABLE}")
        spec = SPECS[stage].model_validate(json.loads(from_outside(arguments.spec)))
        job = Job(stage, spec, arguments.output, inputs)
        runtime = Runtime.model_validate(json.loads(from_outside(os.environ[RUNTIME_VARIABLE])))
    else:
        jobs = load_jobs(arguments)
        job = select(jobs, arguments)
        job = Job(stage, job.spec, arguments.output or job.output, job.inputs | inputs)
        runtime = Runtime.of(jobs.config)
    given = {name: value for name in ("device", "tracker") if (value := getattr(arguments, name))}
    return job, runtime.model_copy(update=given)


def _mark_shared(job: Job) -> None:
    """Leave a mark in another checkout's cache, which must not think that nobody else uses it."""
    for name in {"answers", "tokens", "store"} & job.inputs.keys():
        cache = job.inputs[name].parents[2]
        if cache.resolve() != Path("results").resolve():
            with suppress(OSError):  # one that cannot be written to cannot be pruned by its mistake either
                (cache / SHARED_MARK).touch()


@contextmanager
def _admitted(folder: Path, beside_others: BesideOthers) -> Iterator[Claim | None]:
    """Work in a folder beside others or not: a killed Snakemake may have left a stage behind that still runs."""
    path = folder / ".lock"
    if beside_others == "share":
        yield None
    elif beside_others == "wait":
        with locked(path):
            yield None
    else:
        held = claim(path)
        if held is None:
            raise UserError(
                f"{holder(path)} works in {folder}; wait for it or stop it, then run again (nothing is lost)"
            )
        try:
            yield held
        finally:
            held.release()


def _run(
    stage: str,
    arguments: argparse.Namespace,
    select: Callable[[Jobs, argparse.Namespace], Job],
    load_run: Callable[[argparse.Namespace], Body] | None,
    beside_others: BesideOthers,
    fits: bool,
) -> None:
    job, runtime = _job(stage, arguments, select)
    for name, path in job.inputs.items():
        if not path.is_file():
            maker = MAKERS.get(name, "the stage that makes it")
            raise UserError(f"input {name}: {path} does not exist; run {maker}, or Snakemake")
    _mark_shared(job)
    if beside_others == "wait" and _finished_for_readers(job):
        log.info("%s is finished, and is left as it is, since this user cannot write there", job.output.parent)
    else:
        with _admitted(job.output.parent, beside_others) as lock:
            if fits:
                from kava.plan.check import check_fits

                runtime = check_fits(job, runtime)
            if processes(job) == 1:
                body = load_run(arguments) if load_run else job.body()
                body(job, runtime)
            else:
                from kava.training.processes import run_in_processes

                assert lock is not None, "training refuses to start beside others"
                run_in_processes(job, runtime, processes(job), lock.fileno())
    if arguments.json:
        manifest = job.output if job.output.suffix == ".json" else job.output.with_suffix(".json")
        print(json.dumps(read_json(manifest)))


def _finished_for_readers(job: Job) -> bool:
    """Whether a job's content-keyed folder is finished and may only be read: no lock can be had, and none is needed."""
    folder = job.output.parent
    return bool(KEYED.fullmatch(folder.name)) and job.output.is_file() and not_writable(folder) is not None
