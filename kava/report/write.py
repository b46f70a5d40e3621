"""Write the report of one experiment: page, numbers and record."""

import logging

from kava.config.jobs import Job, Runtime
from kava.files import write_atomic, write_json
from kava.provenance import provenance
from kava.report import build_report, render_html
from kava.report.record import write_record
from kava.report.sources import report_inputs

log = logging.getLogger("kava")


def run(job: Job, runtime: Runtime) -> None:
    """Write `ab_report.html`, `ab_report.json` and the experiment's `record.yaml`."""
    del runtime
    spec = job.spec.model_dump(mode="json")
    report = build_report(report_inputs(spec, job.inputs, provenance(job.inputs["store"])))
    write_json(job.output.with_suffix(".json"), report)
    record = write_record(spec, job.inputs, report)
    write_atomic(job.output, render_html(report))
    log.info("%s", report["verdict"])
    log.info("%s, %s", job.output, record)
