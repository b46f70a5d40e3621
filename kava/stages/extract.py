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

from kava.config.job import Body
from kava.stages.common import stage_main

OPTIONS = {"part": "k/n: write every n-th shard from the k-th on, and do not seal"}


def main(argv: list[str] | None = None) -> int:
    return stage_main(
        "extract", __doc__, argv, lambda jobs, _: jobs.extract, _body, options=OPTIONS, beside_others="share"
    )


def _body(given: argparse.Namespace) -> Body:
    from kava.plan.check import check_fits
    from kava.teacher.extract import run

    # Whether the teacher fits is of no matter where all shards are there.
    return partial(run, part=given.part, before_loading=check_fits)


if __name__ == "__main__":
    sys.exit(main())
