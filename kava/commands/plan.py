"""Show what a run would take of the GPU and the disk, before anything runs and before a byte is downloaded.

    kava plan --preset qwen2.5-8gb
    kava plan --preset qwen2.5-8gb --set distill.batch_size=1 --json

A table of every stage's memory at its peak, of the arm that takes most; what breaks `vram_budget_gib`, and the settings
that would fix it, the least harmful first; then tokens and disk, and whether the longest test question and its answer
fit the positions of the models. Exit status 0 if every stage of every arm fits, 1 if not.
"""

import argparse
import json

from kava.commandline import CONFIGURATION, JSON, load_jobs, run_command


def main(argv: list[str] | None = None) -> int:
    return run_command("kava plan", __doc__, argv, _plan, *CONFIGURATION, JSON)


def _plan(arguments: argparse.Namespace) -> int:
    jobs = load_jobs(arguments)

    from kava.plan.overview import overview
    from kava.plan.show import as_json, as_text

    plan = overview(jobs)
    print(json.dumps(as_json(plan)) if arguments.json else as_text(plan))
    return int(not plan.fits)
