"""The training curves: a small chart for each part of the loss that any arm logged."""

from typing import NamedTuple

import altair as alt

from kava.report.build import Report
from kava.report.charts.lines import Axes, Lines, drawn
from kava.report.charts.style import CURVE_HEIGHT, Chart, finish
from kava.report.clean import grouped
from kava.report.format import listed


class Curve(NamedTuple):
    """One logged quantity."""

    name: str
    stage: str
    field: str
    title: str
    caption: str


LOSSES = (
    Curve("ce", "distill", "ce", "Cross entropy", "The one loss that every arm shares, so the one to compare."),
    Curve("kv", "distill", "kv", "KV loss", "Each arm's own KV loss, before its weight."),
    Curve("codi", "distill", "codi", "CODI loss", "Hidden states before the answer, before the weight."),
    Curve("logit_kd", "distill", "logit_kd", "Logit KD loss", "KL to the teacher's stored top-k, before the weight."),
    Curve("cka", "distill", "cka", "CKA loss", "1 − linear CKA with the teacher's KV, before the weight."),
    Curve("hidden", "distill", "hidden", "Hidden-state loss", "Hidden states of all tokens, before the weight."),
    Curve("attention", "distill", "attention", "Attention KL", "The attention part of the structural loss."),
    Curve("pretrain", "pretrain", "loss", "Projector loss", "Pretraining against the frozen student."),
)
CENTRED, RAW = "cos_sim_centered", "cos_sim"
SIMILARITIES = (
    Curve(CENTRED, "distill", CENTRED, "Centred cosine", "Channel means removed: predicting the mean scores 0."),
    Curve(RAW, "distill", RAW, "Raw cosine", "Close to 1 for a constant prediction where keys are biased."),
)


def loss_charts(report: Report) -> list[Chart]:
    """The parts of the loss that any arm logged."""
    return [chart for curve in LOSSES if (chart := curve_chart(curve, report))]


def similarity_charts(report: Report) -> list[Chart]:
    """Centred and raw cosine during distillation, on one scale."""
    values = [row.values[curve.field] for row in report.curves for curve in SIMILARITIES if row.stage == curve.stage]
    low = min([value for value in values if value is not None], default=0.0)
    domain = (max(-1.0, int(10 * low - 1) / 10), 1.0)
    return [chart for curve in SIMILARITIES if (chart := curve_chart(curve, report, domain))]


def curves_end(report: Report) -> str:
    """Why curves of the KV loss end before the others, and why none ends at the number of a table."""
    measured = (
        "Curves are of training batches; the table of alignment is measured on held-out examples at the end of "
        "training."
    )
    ends = grouped((until, arm) for arm, until in report.kv_until.items() if until < 1)
    if not ends:
        return measured
    alike = len(ends) == 1 and len(ends[next(iter(ends))]) == len(report.kv_until)
    shares = [
        f"{100 * until:g}% of the steps{'' if alike else f' ({listed(arms)})'}" for until, arms in sorted(ends.items())
    ]
    return f"The KV loss is off after {listed(shares)} (kv_until), so its curves and the cosines’ end there. {measured}"


def single_points(report: Report) -> str:
    """A sentence on the quantities that every run logged once, which make no curve; empty if there are none."""
    single = [curve for curve in (*LOSSES, *SIMILARITIES) if _longest(_logged(curve, report)) == 1]
    if not single:
        return ""
    stages = listed(list(dict.fromkeys(f"{curve.stage}.log_every" for curve in single)))
    return (
        f"Not drawn, since each run logged one point: {listed([curve.title.lower() for curve in single])}. A lower "
        f"{stages} logs more."
    )


def _logged(curve: Curve, report: Report) -> Lines:
    """Where it was logged."""
    runs: dict[str, dict[str, dict[int, float]]] = {}
    for row in report.curves:
        if row.stage == curve.stage and (value := row.values[curve.field]) is not None:
            runs.setdefault(row.arm, {}).setdefault(row.seed, {})[row.step] = value
    return runs


def _longest(runs: Lines) -> int:
    return max((len(line) for seeds in runs.values() for line in seeds.values()), default=0)


def curve_chart(curve: Curve, report: Report, domain: tuple[float, float] | None = None) -> Chart | None:
    """One logged quantity against the optimizer step; None where no run logged two values."""
    runs = _logged(curve, report)
    if _longest(runs) < 2:
        return None
    logged = grouped((row.arm, row.seed) for row in report.curves if row.stage == curve.stage)
    # Given, not derived: a layer whose arms are not chosen has no values to derive it from.
    seen = [value for seeds in runs.values() for line in seeds.values() for value in line.values()]
    last = max(step for seeds in runs.values() for line in seeds.values() for step in line)
    x_axis, x_scale = alt.Axis(tickCount=5, format="d"), alt.Scale(domain=[0, last])
    axes = Axes(
        curve.title.lower(),
        report,
        alt.X("step:Q", title="optimizer step", scale=x_scale, axis=x_axis),
        alt.Scale(domain=list(domain or (min(seen), max(seen))), nice=domain is None, zero=False),
    )
    # A mean over the seeds that happen to have the field, or to have finished, would pass for that of the arm.
    missing = [arm for arm in runs if report.arms[arm].missing_seeds]
    partial = [arm for arm, seeds in runs.items() if arm in missing or set(seeds) != set(logged[arm])]
    several = bool(missing) or any(len(set(of_arm)) > 1 for of_arm in logged.values())
    chart, rows, without = drawn(axes, runs, partial, several)
    caption = f"{curve.caption}{f' {without}, as not every seed logged it: {listed(partial)}.' if partial else ''}"
    spec = finish(chart.properties(height=CURVE_HEIGHT), f"{curve.title} against optimizer step. {caption}")
    return Chart(curve.name, curve.title, caption, spec | {"datasets": rows})
