"""Compare the arms: results/ab_report.html, one self-contained page, and results/ab_report.json with its numbers.

    kava report --preset demo
    kava report results/exp-a results/exp-b        # one report over finished experiments; `kava report DIR --help`

Writes results/<experiment>/record.yaml, too: what the experiment was, and what it found.
"""

import argparse
import sys

from kava.config.jobs import Job, Plan, Runtime
from kava.stages.common import log, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Plan, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.report

    return stage_main("report", __doc__, argv, select, lambda _: run)


def run(job: Job, runtime: Runtime) -> None:  # noqa: ARG001
    from kava.files import write_atomic, write_json
    from kava.provenance import provenance
    from kava.report import build_report, render_html
    from kava.report.record import write_record
    from kava.report.sources import report_inputs

    report = build_report(report_inputs(job.spec, job.inputs, provenance(job.inputs["store"])))
    write_json(job.output.with_suffix(".json"), report)
    record = write_record(job.spec, job.inputs, report)
    write_atomic(job.output, render_html(report))
    log.info("%s", report["verdict"])
    log.info("%s, %s", job.output, record)


if __name__ == "__main__":
    sys.exit(main())
