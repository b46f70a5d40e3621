"""Measure what each codec makes of the run's own teacher KV, for the report's chart of size against fidelity.

    python -m kava.stages.bench_store --preset demo

For a run with `report.codecs: true`. Reads a few of the tokens with the teacher and writes
<cache_dir>/bench/<name>-<key>/store.json. `kava bench store` measures any model and more tokens.
"""

import argparse
import sys

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.bench

    return stage_main("bench_store", __doc__, argv, select, _body, beside_others="wait")


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.bench.bench_store import run

    return run


if __name__ == "__main__":
    sys.exit(main())
