"""Write the report of one experiment: page, numbers and record."""

import logging

from kava.config.jobs import Job, Runtime
from kava.files import write_atomic, write_json
from kava.provenance import provenance
from kava.report.build import build_report
from kava.report.inputs import report_inputs
from kava.report.page.render import render_html
from kava.report.record import write_record

log = logging.getLogger("kava")


def run(job: Job, runtime: Runtime) -> None:
    """Write `ab_report.html`, `ab_report.json` and the experiment's `record.yaml`."""
    del runtime
    report = build_report(report_inputs(job.spec, job.inputs, provenance(job.inputs["store"])))
    write_json(job.output.with_suffix(".json"), report.to_dict())
    record = write_record(job.spec, job.inputs, report)
    write_atomic(job.output, render_html(report))
    log.info("%s", report.verdict.sentence)
    log.info("%s, %s", job.output, record)
