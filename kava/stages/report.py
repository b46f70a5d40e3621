"""Compare the arms: results/ab_report.html, one self-contained page, and results/ab_report.json with its numbers.

kava report --preset demo
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kava.config.jobs import Job, Plan, Runtime
from kava.stages.common import log, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Plan, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.report

    return stage_main("report", __doc__, argv, select, lambda _: run)


def run(job: Job, runtime: Runtime) -> None:  # noqa: ARG001
    from kava.files import write_atomic, write_json
    from kava.provenance import provenance
    from kava.report import ReferenceFiles, ReportInputs, RunFiles, build_report, render_html

    spec, inputs = job.spec, job.inputs
    controls_last = sorted(spec["arms"], key=lambda arm: (arm in spec["controls"], arm))
    arms = {arm: spec["arms"][arm] for arm in controls_last}
    runs: dict[str, dict[str, RunFiles]] = {arm: {} for arm in arms}
    for name, path in inputs.items():
        arm, _, rest = name.partition("/seed-")
        if rest.endswith("/evaluation"):
            files = {part: inputs.get(f"{arm}/seed-{rest.split('/')[0]}/{part}") for part in ("projector", "student")}
            projector, student = files["projector"], files["student"]
            assert student is not None, f"{name} without its student"
            runs[arm][rest.split("/")[0]] = RunFiles(
                projector=projector.parent if projector else None, student=student.parent, evaluation=path.parent
            )
    store = inputs["store"]
    report = build_report(
        ReportInputs(
            experiment=spec["experiment"],
            preset=spec["preset"],
            arms=arms,
            runs=runs,
            stores={json.loads(store.read_text())["name"]: store},
            teacher=_reference(inputs["teacher"], ReferenceFiles),
            student_base=_reference(inputs["student_base"], ReferenceFiles),
            comparisons=[(a, b) for a, b in spec["comparisons"]],
            controls=spec["controls"],
            config={name: value for name, value in spec.items() if name != "controls"},
            provenance=provenance(store),
            bench=inputs.get("bench"),
            tokens=inputs["tokens"],
        )
    )
    write_json(job.output.with_suffix(".json"), report)
    write_atomic(job.output, render_html(report))
    log.info("%s", report["verdict"])
    log.info("%s", job.output)


def _reference(manifest: Path, make: Any) -> Any:
    return make(model=json.loads(manifest.read_text())["model"], evaluation=manifest.parent)


if __name__ == "__main__":
    sys.exit(main())
