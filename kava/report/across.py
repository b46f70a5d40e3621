"""Several experiments as one report: their arms side by side, and what differs between the experiments said aloud.

An arm is called `<experiment>/<arm>`. Compared are the pairs that each experiment declares, and each arm of a later
experiment with the arm of the same name of the first one; Holm's correction is over all of them but those of runs
that are the same. Experiments that answered other test questions are shown beside each other and not compared.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from kava.errors import UserError
from kava.report.alignment import over_shuffled
from kava.report.build import Report, ReportedExperiment, build_report
from kava.report.clean import flatten, grouped
from kava.report.format import Scale, listed
from kava.report.inputs import ReferenceFiles, ReportInputs, report_inputs
from kava.report.record import Experiment

# Settings that are said elsewhere: arm by arm, or in the table of experiments.
SAID_ELSEWHERE = {"arms", "comparisons", "controls", "experiment", "notes", "preset", "seeds"}
TITLES = {"teacher": "teacher", "student_base": "base student"}

Experiments = Mapping[str, Experiment]


def report_across(experiments: Sequence[Experiment], command: str) -> Report:
    """One report over finished experiments, in the order given.

    Parameters
    ----------
    experiments
        As `read_record` returned them.
    command
        How the report was asked for.

    Raises
    ------
    UserError
        If an experiment is given twice, or two are judged by different metrics.
    """
    named = name_each(experiments)
    parts = {name: report_inputs(e.record["configuration"], e.inputs, {}) for name, e in named.items()}
    report = build_report(_merged(named, parts, command))
    # A layer map, and the odds of a retrieval, are those of one teacher, base student and token set.
    origins = {(e.inputs["store"].parent.name, e.inputs["student_base"].parent.name) for e in named.values()}
    own = [{f"{name}/{arm}": config for arm, config in part.arms.items()} for name, part in parts.items()]
    within = [over_shuffled(arms, {arm: report.arms[arm].alignment for arm in arms}) for arms in own]
    return replace(
        report,
        cka=report.cka if len(origins) == 1 else None,
        retrieval_over_shuffled={arm: over for each in within for arm, over in each.items()},
        experiments={name: _reported(e, parts[name]) for name, e in named.items()},
    )


def name_each(experiments: Sequence[Experiment]) -> dict[str, Experiment]:
    """Experiments by the name of their folder, numbered where that is the same; one that is given twice is refused."""
    places = [os.path.realpath(e.folder) for e in experiments]
    if twice := next((place for i, place in enumerate(places) if place in places[:i]), None):
        raise UserError(f"{twice} is given twice; give each experiment once")
    own = [os.path.basename(os.path.abspath(e.folder)) for e in experiments]
    named: dict[str, Experiment] = {}
    for name, experiment in zip(own, experiments, strict=True):
        numbered = (f"{name} ({i})" for i in count(1))
        free = name if own.count(name) == 1 else next(n for n in numbered if n not in named and n not in own)
        named[free] = experiment
    return named


def _reported(experiment: Experiment, inputs: ReportInputs) -> ReportedExperiment:
    date, notes, verdict, models = (experiment.record[name] for name in ("date", "notes", "verdict", "models"))
    seeds = list(dict.fromkeys(seed for runs in inputs.runs.values() for seed in runs))
    return ReportedExperiment(date, notes, verdict, models, len(inputs.arms), seeds)


def _merged(named: Experiments, parts: Mapping[str, ReportInputs], command: str) -> ReportInputs:
    first = next(iter(parts.values()))
    if other := next((name for name, part in parts.items() if part.metrics != first.metrics), None):
        said = " and ".join(f"{part.experiment} by {part.metrics[0].label}" for part in (first, parts[other]))
        raise UserError(f"the experiments are judged by different metrics, {said}; report each by itself")
    differing = _differing_settings(named)
    across = _of_the_same_name(named, parts)
    bases = {part.student_base.evaluation.name for part in parts.values()}
    benches = {part.bench.parent.name if part.bench else None for part in parts.values()}
    return ReportInputs(
        experiment=", ".join(named),
        preset=", ".join(dict.fromkeys(part.preset for part in parts.values())),
        metrics=first.metrics,
        breakdowns=first.breakdowns,
        arms={f"{n}/{arm}": config | differing[n] for n, part in parts.items() for arm, config in part.arms.items()},
        runs={f"{n}/{arm}": seeds for n, part in parts.items() for arm, seeds in part.runs.items()},
        stores={path.parent.name: path for part in parts.values() for path in part.stores.values()},
        teacher=first.teacher,
        student_base=first.student_base,
        comparisons=across + [(f"{n}/{a}", f"{n}/{b}") for n, part in parts.items() for a, b in part.comparisons],
        across=across,
        controls=[f"{name}/{arm}" for name, part in parts.items() for arm in part.controls],
        config={name: e.record["configuration"] for name, e in named.items()},
        seeds={f"{n}/{arm}": seeds for n, part in parts.items() for arm, seeds in part.seeds.items()},
        provenance={"command": command} | {name: _origin(e) for name, e in named.items()},
        bench=first.bench if len(benches) == 1 else None,
        tokens={name: e.inputs["tokens"] for name, e in named.items()},
        references=_references(parts),
        common_start=len(bases) == 1,
        mismatches=_other_questions(named) + _other_references(parts, named),
    )


def _references(parts: Mapping[str, ReportInputs]) -> dict[str, ReferenceFiles]:
    """Further models by name; with that of the experiment before it where experiments give it to several models."""
    found: dict[str, ReferenceFiles] = {}
    for experiment, part in parts.items():
        for name, files in part.references.items():
            of_all = [other.references[name] for other in parts.values() if name in other.references]
            same = len({each.evaluation.name for each in of_all}) == 1
            found.setdefault(name if same else f"{experiment}/{name}", files)
    return found


def _origin(experiment: Experiment) -> dict[str, Any]:
    return {name: experiment.record[name] for name in ("date", "report_made_with", "data", "tokenizer")}


def _differing_settings(named: Experiments) -> dict[str, dict[str, Any]]:
    """Experiment → dotted settings outside of arms in which the experiments differ; None where one has no such."""
    flat = {
        name: flatten({k: v for k, v in e.record["configuration"].items() if k not in SAID_ELSEWHERE})
        for name, e in named.items()
    }
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    first = next(iter(flat.values()))
    differing = [key for key in keys if any(settings.get(key) != first.get(key) for settings in flat.values())]
    return {name: {key: settings.get(key) for key in differing} for name, settings in flat.items()}


def _of_the_same_name(named: Experiments, parts: Mapping[str, ReportInputs]) -> list[tuple[str, str]]:
    """Each later experiment's arms against those of the first."""
    baseline, *later = parts
    return [
        (f"{name}/{arm}", f"{baseline}/{arm}")
        for name in later
        if _questions(named[name]) == _questions(named[baseline])
        for arm in parts[name].arms
        if arm in parts[baseline].arms
    ]


def _questions(experiment: Experiment) -> tuple[str, ...]:
    return tuple(experiment.record["questions_sha256"])


def _other_questions(named: Experiments) -> list[str]:
    groups = grouped((_questions(experiment), name) for name, experiment in named.items())
    if len(groups) == 1:
        return []
    apart = "; ".join(listed(names) for names in groups.values())
    return [f"These experiments answered different test questions, and are not compared with each other: {apart}."]


def _other_references(parts: Mapping[str, ReportInputs], named: Experiments) -> list[str]:
    """A sentence for each role in which the experiments do not share one evaluation, with all their scores."""
    sentences = []
    of_role: dict[str, dict[str, ReferenceFiles]] = {
        "teacher": {name: part.teacher for name, part in parts.items()},
        "student_base": {name: part.student_base for name, part in parts.items()},
    }
    for role, files in of_role.items():
        if len({reference.evaluation.name for reference in files.values()}) > 1:
            rows = {name: named[name].record["models"][role] for name in files}
            metric = next(iter(parts.values())).metrics[0]
            scale = Scale(metric)
            said = "; ".join(
                f"{name}: {row['model']}, {metric.label} {scale.value(row[metric.name])} "
                f"({scale.edges(row[f'{metric.name}_ci95'])}, n {row['n']})"
                for name, row in rows.items()
            )
            sentences.append(
                f"The experiments have no {TITLES[role]} in common ({said}); the row of the {TITLES[role]} is that of "
                f"{next(iter(files))}."
            )
    return sentences
