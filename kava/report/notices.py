"""Warnings of all runs, with those merged that differ only in their seed and their numbers; the worst first."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from kava.misalignment import INERT_BEGINS, inert_sentence, is_inert
from kava.report.clean import grouped
from kava.report.evaluated import Evaluation
from kava.report.finished import Alignment, FinishedRun, Runs
from kava.report.format import listed
from kava.tasks.metric import ANSWER_NLL, Metric

# What of a run tells its cross entropy at the end: the mean over this last share of its logged steps, which averages
# out batches. They are the same batches in the same order for every arm of a seed, so that a relative difference above
# the second number is the KV loss's doing.
LAST_SHARE, SAME_CE = 0.25, 0.02
# Models that a sentence can name.
NAMED = 4

# Not the 2 of r2, nor the number that names a layer or a head: sentences about different heads are never merged.
NUMBER = re.compile(r"(?<![\w.])(?<!layer )(?<!head )-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


class Notice(NamedTuple):
    """One sentence about one run; `stage` is None where the sentence is about the arm's result."""

    arm: str
    seed: str
    stage: str | None
    text: str


def run_notices(runs: Runs) -> list[Notice]:
    """What the manifests carry, and each collapse that the stage itself did not name."""
    found = []
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            for stage, part in (("pretrain", run.pretrain), ("distill", run.distill)):
                # An inert loss is said by `inert_runs`, which knows the control too.
                carried = [text for text in (part.warnings if part else ()) if not text.startswith(INERT_BEGINS)]
                found += [Notice(arm, seed, stage, text) for text in carried]
            alignment = run.distill.alignment or Alignment()
            named = any(n[:3] == (arm, seed, "distill") and n.text.startswith("collapse") for n in found)
            if alignment.collapsed and not named:
                text = (
                    f"collapse. The raw cosine is {alignment.cos_sim:.2f} but r2 is {alignment.r2:.2f}, so the "
                    "projection predicts little more than each channel’s mean."
                )
                found.append(Notice(arm, seed, None, text))
    return found


def token_warnings(tokens: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the token sets' manifests warn of; `tokens` is experiment → manifest."""
    return of_experiments({name: manifest.get("warnings") or () for name, manifest in tokens.items()})


def of_experiments(sentences: Mapping[str, Sequence[str]]) -> list[str]:
    """The sentences of several experiments; one begins with the names of its experiments where not all have it."""
    experiments = grouped((sentence, name) for name, own in sentences.items() for sentence in own)
    return [
        sentence if len(names) == len(sentences) else f"{listed(names)}: {sentence}"
        for sentence, names in experiments.items()
    ]


def metrics_warnings(runs: Runs) -> list[str]:
    """What to say where alignment was not measured by the same metrics in all runs."""
    measured: dict[str, list[str]] = {}
    for arm, seeds in runs.items():
        for run in seeds.values():
            if run.distill.metrics:
                measured.setdefault(run.distill.metrics, []).append(arm)
    if len(measured) < 2:
        return []
    groups = [listed(list(dict.fromkeys(arms))) for arms in measured.values()]
    return [
        f"Alignment was measured by other metrics in {' than in '.join(groups)}: these figures are not comparable; "
        "run `kava measure` for the older ones."
    ]


def inert_runs(runs: Runs, configs: Mapping[str, Mapping[str, Any]], controls: Sequence[str]) -> list[Notice]:
    """The runs whose KV loss did nothing: KV that does not follow the teacher's, and the control's cross entropy.

    The control is the first one without an aligner that has the seed; where there is none, KV alone decides.
    """
    plain = [name for name in controls if configs[name].get("aligner") is None]
    found = []
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            alignment = asdict(run.distill.alignment or Alignment())
            if not is_inert(configs[arm], alignment):
                continue
            control = next((name for name in plain if seed in runs.get(name, {})), None)
            said = ""
            if control is not None:
                own, other = last_ce(run), last_ce(runs[control][seed])
                if own is not None and other is not None:
                    if abs(own - other) > SAME_CE * abs(other):
                        continue
                    said = f", and its cross entropy ends at {own:.3f} as that of {control} at {other:.3f}"
            found.append(Notice(arm, seed, "distill", inert_sentence(configs[arm], alignment, said)))
    return found


def last_ce(run: FinishedRun) -> float | None:
    """Mean cross entropy of the last logged steps; None where none was logged or one is not finite."""
    logged = [at.values["ce"] for at in run.distill.logged if "ce" in at.values]
    last = logged[-max(1, round(LAST_SHARE * len(logged))) :]
    return sum(last) / len(last) if last and all(math.isfinite(value) for value in last) else None


def merged(notices: Sequence[Notice]) -> list[str]:
    """One line per arm, stage and kind of sentence, the seeds listed and differing numbers given as a range."""
    groups = grouped(((notice.arm, notice.stage, NUMBER.sub("#", notice.text)), notice) for notice in notices)
    worst_first = sorted(groups.items(), key=lambda item: not item[0][2].startswith((INERT_BEGINS, "collapse")))
    lines = []
    for (arm, stage, _), group in worst_first:
        seeds = list(dict.fromkeys(notice.seed for notice in group))
        where = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}{f', {stage}' if stage else ''}"
        lines.append(f"{arm} ({where}): {_ranged([notice.text for notice in group])}")
    return lines


def _ranged(texts: Sequence[str]) -> str:
    slots = iter(zip(*(NUMBER.findall(text) for text in texts), strict=True))

    def fill(_: re.Match[str]) -> str:
        numbers = next(slots)
        low, high = min(numbers, key=float), max(numbers, key=float)
        return low if float(low) == float(high) else f"{low} to {high}"

    return NUMBER.sub(fill, texts[0])


def unknown_numbers(evaluations: Mapping[str, Evaluation], metrics: Sequence[Metric]) -> str:
    """A sentence on the evaluations of before the gold answers were scored; empty if there are none.

    `evaluations` maps what the page calls each to its files; `metrics` are those that they may have.
    """
    if ANSWER_NLL not in metrics:
        return ""
    without = [name for name, evaluation in evaluations.items() if evaluation.means[ANSWER_NLL.name] is None]
    if not without:
        return ""
    few = listed(without) if len(without) <= NAMED else f"{len(without)} models"
    who = "any model" if len(without) == len(evaluations) else few
    return (
        f"Answer NLL and teacher agreement are not known of {who}: an earlier version of KAVA evaluated without them, "
        "and evaluating again adds them."
    )


def lost_numbers(places: Sequence[str]) -> list[str]:
    """One line per file for the numbers in it that were not finite; `places` are "file: dotted place"."""
    lines = []
    for file, numbers in grouped(place.rpartition(": ")[::2] for place in places).items():
        where = f"{file}: {numbers[0]}" if file else numbers[0]
        if len(numbers) == 1:
            lines.append(f"{where} is not a finite number; it is left out.")
        else:
            lines.append(f"{where} and {len(numbers) - 1} more are not finite numbers; they are left out.")
    return lines
