"""Tell what a cosine would mean for a teacher and a student, before anything is trained.

    kava profile --preset demo
    kava profile --preset qwen2.5-8gb --tokens 16384 --json profile.json

Reads the teacher's KV from the sealed store and loads the student alone; prints norms, biases, what a constant scores
and what a linear map predicts per layer, and writes them as a page: results/<experiment>/profile.html.
"""

import argparse
import logging
import sys
from pathlib import Path

from kava.commandline import add_configuration_options, command_parser, exit_status, load_plan, same_configuration
from kava.config.jobs import Jobs
from kava.errors import UserError

log = logging.getLogger("kava")
TOKENS = 4096


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("kava profile", __doc__)
    add_configuration_options(parser)
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, help="training tokens, to whole examples (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="the page (default: results/<experiment>/profile.html)"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    return exit_status("kava profile", lambda: _profile(arguments))


def _profile(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1:
        raise UserError(f"--tokens {arguments.tokens}: at least one token is needed")
    plan = load_plan(arguments)
    _require_store(plan, arguments)

    from kava.config.identity import display_name
    from kava.device import choose_device
    from kava.files import write_atomic, write_json
    from kava.profile.gather import gather
    from kava.profile.measure import measure
    from kava.profile.page import page
    from kava.profile.show import as_text
    from kava.store.reader import StoreReader

    config = plan.config
    device = choose_device(config.device)
    store = StoreReader(plan.extract.output, device)
    student = config.student
    log.info("reading %d training tokens with the student %s", arguments.tokens, display_name(config.student.model))
    sample = gather(plan.tokenize.output, store, student, arguments.tokens, config.pretrain.batch_size, device)
    profile = measure(sample)
    profile["teacher"] |= {"model": display_name(config.teacher.model), "channels": store.geometry.channels}
    profile["student"] |= {"model": display_name(config.student.model)}
    profile |= {"experiment": config.experiment, "store": plan.extract.output.parent.name, "keys_form": store.keys_form}
    print(as_text(profile))
    if arguments.json:
        write_json(arguments.json, profile)
    html = arguments.html or plan.experiment / "profile.html"
    write_atomic(html, page(profile))
    log.info("wrote %s", html)


def _require_store(plan: Jobs, arguments: argparse.Namespace) -> None:
    missing = [job for job in (plan.tokenize, plan.extract) if not job.output.is_file()]
    if not missing:
        return
    commands = " && ".join(same_configuration(f"kava {job.stage}", arguments) for job in missing)
    raise UserError(f"{missing[-1].output} does not exist; make it with `{commands}`")


if __name__ == "__main__":
    sys.exit(main())
