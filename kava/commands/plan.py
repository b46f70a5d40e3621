"""Tell what a run would take of the GPU and the disk, before anything runs and before a byte is downloaded.

    kava plan --preset qwen2.5-8gb
    kava plan --preset qwen2.5-8gb --set distill.batch_size=1 --json

A table of every stage's memory at its peak, of the arm that takes most; what breaks `vram_budget_gib`, and the settings
that would mend it, the least harmful first; then tokens and disk, and whether the longest test question and its answer
fit the positions of the models. Exit status 0 if every stage of every arm fits, 1 if not.
"""

import argparse
import json
import sys

from kava.commandline import add_configuration_options, command_parser, exit_status, load_plan


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("kava plan", __doc__)
    add_configuration_options(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object on stdout")
    arguments = parser.parse_args(argv)
    fits: list[bool] = []
    return exit_status("kava plan", lambda: fits.append(_plan(arguments))) or int(not fits[0])


def _plan(arguments: argparse.Namespace) -> bool:
    plan = load_plan(arguments)

    from kava.plan.overview import overview
    from kava.plan.show import as_json, as_text

    found = overview(plan)
    print(json.dumps(as_json(found)) if arguments.json else as_text(found))
    return found.fits


if __name__ == "__main__":
    sys.exit(main())
