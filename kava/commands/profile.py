"""Show what a cosine would mean for a teacher and a student, before anything is trained.

    kava profile --preset demo
    kava profile --preset qwen2.5-8gb --tokens 16384 --json profile.json

Reads the teacher's KV from the sealed store and loads the student alone; prints norms, biases, what a constant scores
and what a linear map predicts per layer, and writes them as a page: results/<experiment>/profile.html.
"""

import argparse
import logging
from pathlib import Path

from kava.commandline import CONFIGURATION, load_jobs, option, require_one, run_command, same_configuration
from kava.config.jobs import Jobs
from kava.errors import UserError
from kava.exits import log_to_stderr

log = logging.getLogger("kava")
TOKENS = 4096


def main(argv: list[str] | None = None) -> int:
    tokens = "training tokens, to whole examples (default: %(default)s)"
    html = "the page (default: results/<experiment>/profile.html)"
    return run_command(
        "kava profile", __doc__, argv, _profile, *CONFIGURATION,
        option("--tokens", type=int, default=TOKENS, help=tokens),
        option("--json", type=Path, metavar="FILE", help="write the numbers there"),
        option("--html", type=Path, metavar="FILE", help=html),
    )  # fmt: skip


def _profile(arguments: argparse.Namespace) -> None:
    log_to_stderr()
    require_one(arguments, "tokens")
    jobs = load_jobs(arguments)
    _require_store(jobs, arguments)

    from kava.config.identity import display_name
    from kava.device import choose_device
    from kava.files import write_atomic, write_json
    from kava.profile.gather import gather
    from kava.profile.measure import measure
    from kava.profile.page import page
    from kava.profile.show import as_text
    from kava.store.reader import StoreReader

    config = jobs.config
    device = choose_device(config.device)
    store = StoreReader(jobs.extract.output, device)
    student = config.student
    log.info("reading %d training tokens with the student %s", arguments.tokens, display_name(config.student.model))
    sample = gather(jobs.tokenize.output, store, student, arguments.tokens, config.pretrain.batch_size, device)
    profile = measure(sample)
    profile["teacher"] |= {"model": display_name(config.teacher.model), "channels": store.geometry.channels}
    profile["student"] |= {"model": display_name(config.student.model)}
    profile |= {"experiment": config.experiment, "store": jobs.extract.output.parent.name, "keys_form": store.keys_form}
    print(as_text(profile))
    if arguments.json:
        write_json(arguments.json, profile)
    html = arguments.html or jobs.experiment / "profile.html"
    write_atomic(html, page(profile))
    log.info("wrote %s", html)


def _require_store(jobs: Jobs, arguments: argparse.Namespace) -> None:
    missing = [job for job in (jobs.tokenize, jobs.extract) if not job.output.is_file()]
    if not missing:
        return
    commands = " && ".join(same_configuration(f"kava {job.stage}", arguments) for job in missing)
    raise UserError(f"{missing[-1].output} does not exist; make it with `{commands}`")
