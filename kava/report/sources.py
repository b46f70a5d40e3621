"""From what a run is, and where its stages wrote, to what its report reads; the same for a report over several runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.report.inputs import ReferenceFiles, ReportInputs, RunFiles


def report_inputs(spec: Mapping[str, Any], inputs: Mapping[str, Path], provenance: Mapping[str, Any]) -> ReportInputs:
    """Inputs of the report of one experiment.

    Parameters
    ----------
    spec
        The resolved configuration, with `seeds`, `comparisons` and `controls`.
    inputs
        `teacher`, `student_base`, `tokens`, `store`, `bench`, and `<arm>/seed-<n>/<stage>` of each run: manifests.
    provenance
        Shown as it is.
    """
    controls_last = sorted(spec["arms"], key=lambda arm: (arm in spec["controls"], arm))
    runs: dict[str, dict[str, RunFiles]] = {arm: {} for arm in controls_last}
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
    return ReportInputs(
        experiment=spec["experiment"],
        preset=spec["preset"],
        arms={arm: spec["arms"][arm] for arm in controls_last},
        runs=runs,
        stores={json.loads(store.read_text(encoding="utf-8"))["name"]: store},
        teacher=_reference(inputs["teacher"]),
        student_base=_reference(inputs["student_base"]),
        comparisons=[(a, b) for a, b in spec["comparisons"]],
        controls=spec["controls"],
        config={name: value for name, value in spec.items() if name != "controls"},
        provenance=dict(provenance),
        seeds={arm: [str(seed) for seed in spec["seeds"]] for arm in controls_last},
        bench=inputs.get("bench"),
        tokens={spec["experiment"]: inputs["tokens"]},
    )


def _reference(manifest: Path) -> ReferenceFiles:
    return ReferenceFiles(model=json.loads(manifest.read_text(encoding="utf-8"))["model"], evaluation=manifest.parent)
