"""Read the data once with the teacher and store its KV.

    kava extract --preset demo
    kava extract --preset demo --part 2/4

Loads the teacher alone and writes <cache_dir>/teacher_kv/<name>-<key>/: shards first, manifest.json last. A run that
was killed goes on at the first unfinished shard; if all are finished, no model is loaded. Several processes may work
on one store: each takes shards that no other has. `--part k/n` writes every n-th shard and leaves the rest, and the
sealing, to the other parts and a last run without it.
"""

import argparse
import sys
from functools import partial

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.extract

    return stage_main(
        "extract",
        __doc__,
        argv,
        select,
        _body,
        {"part": "k/n: write every n-th shard from the k-th on, and do not seal"},
        beside_others="share",
    )


def _body(arguments: argparse.Namespace) -> Run:
    from kava.plan.check import check_fits
    from kava.teacher.extract import run

    return partial(run, part=arguments.part, before_loading=check_fits)


if __name__ == "__main__":
    sys.exit(main())
