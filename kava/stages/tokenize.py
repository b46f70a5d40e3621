"""Tokenise the data: ids and segments of every example, and the test questions as an lm-eval task.

    kava tokenize --preset demo

Reads no model, only tokenizers. Writes <cache_dir>/tokens/<name>-<key>/manifest.json.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, stage_main

if TYPE_CHECKING:
    pass


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.tokenize

    return stage_main("tokenize", __doc__, argv, select, _body, beside_others="wait")


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.data.tokenize import run

    return run


if __name__ == "__main__":
    sys.exit(main())
