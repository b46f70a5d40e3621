"""Have the teacher answer the training questions, for runs with data.answers: teacher.

    kava write --preset demo --set data.answers=teacher

Loads the teacher alone and writes <cache_dir>/answers/<name>-<key>/: a file of answers for every 64 questions, and
manifest.json last, with how many were right and kept. A run that was killed goes on at the first file that is not
there; if all are, no model is loaded. `kava tokenize` then reads the teacher's own words, and all that follows does.
"""

import argparse
import sys
from functools import partial

from kava.config.job import Body, Job
from kava.config.jobs import Jobs
from kava.errors import UserError
from kava.stages.common import stage_main


def main(argv: list[str] | None = None) -> int:
    return stage_main("write", __doc__, argv, _job, _body, beside_others="wait")


def _job(jobs: Jobs, _: argparse.Namespace) -> Job:
    if jobs.write is None:
        raise UserError("data.answers is gold, so that the teacher writes nothing; set data.answers: teacher")
    return jobs.write


def _body(_: argparse.Namespace) -> Body:
    from kava.evaluation.write import run
    from kava.plan.check import check_writing_fits

    return partial(run, before_loading=check_writing_fits)


if __name__ == "__main__":
    sys.exit(main())
