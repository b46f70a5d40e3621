"""Equal terms, checked rather than assumed: what must be the same in every arm, and where it is not.

A mismatch is a plain sentence. The page shows it in red near the top, and numbers that a mismatch would make
meaningless (an average over seeds that answered different questions) are left out, not averaged over.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from kava.report.clean import grouped
from kava.report.evaluated import Evaluation
from kava.report.finished import Runs
from kava.tasks.metric import Metric

# What must be the same in every arm, and how it is called on the page.
TERMS = {
    "initial student": attrgetter("initial_student_sha256"),
    "data order": attrgetter("data_order_sha256"),
    "optimizer steps": attrgetter("optimizer_steps"),
    "training tokens": attrgetter("train_tokens"),
}

# A setting that older evaluations do not have, with what they did.
ASKED_BEFORE = (("generate", True),)


def _short(value: Any) -> str:
    return f"{value[:10]}…" if isinstance(value, str) and len(value) > 12 else str(value)


def _differing(where: str, what: str, values: Mapping[str, Any]) -> list[str]:
    missing = [name for name, value in values.items() if value is None]
    sentences = [f"{where}: {name} does not record its {what}." for name in missing]
    known = {name: value for name, value in values.items() if value is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} {_short(value)}" for name, value in known.items())
        sentences.append(f"{where}: {what} differs between arms ({listed}).")
    return sentences


def check_training(runs: Runs, declared: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences on every seed whose arms did not train on equal terms.

    Parameters
    ----------
    runs
        Arm → seed → run.
    declared
        Arm → the seeds that it was meant to be trained with; arms of several experiments need not share them.
    """
    sentences = []
    for seed in dict.fromkeys(seed for seeds in declared.values() for seed in seeds):
        present = {name: seeds[seed] for name, seeds in runs.items() if seed in seeds}
        absent = [name for name in runs if seed in declared[name] and name not in present]
        if absent:
            sentences.append(
                f"Seed {seed}: no finished run of {', '.join(absent)}; a mean over the other seeds alone is left out."
            )
        for what, term in TERMS.items():
            sentences += _differing(f"Seed {seed}", what, {name: term(run.distill) for name, run in present.items()})
        fitted = {name: run.pretrain for name, run in present.items() if run.pretrain}
        for what, term in list(TERMS.items())[1:]:  # the student is frozen there, and hashed above
            # An arm may leave its projector as it was drawn; the joint phase is the same for all.
            values = {name: term(training) for name, training in fitted.items() if training.optimizer_steps != 0}
            sentences += _differing(f"Seed {seed}, pretraining", what, values)
    return sentences


def check_evaluations(evaluations: Mapping[str, Evaluation], metrics: Sequence[Metric]) -> list[str]:
    """Sentences on evaluations that differ in their questions or contradict their own samples.

    `evaluations` maps what the page calls each ("flat (seed 42)"; "teacher") to its files.
    """
    sentences = []
    for name, evaluation in evaluations.items():
        lines, n = evaluation.lines, evaluation.n
        if lines != n:
            sentences.append(f"{name}: samples.jsonl has {lines} lines, its manifest says {n}.")
        if twice := lines - len(evaluation.answers):
            sentences.append(f"{name}: {twice} doc_id occur more than once in samples.jsonl.")
        for metric in metrics:
            scores, recorded = list(evaluation.scores(metric).values()), evaluation.means[metric.name]
            # Half a question, or a thousandth, allows for a rounded manifest, nothing more.
            rounding = 0.5 if metric.proportion else 1e-3 * len(scores)
            if scores and recorded is not None and abs(sum(scores) - recorded * len(scores)) > rounding:
                mean = sum(scores) / len(scores)
                sentences.append(f"{name}: {metric.name} is {recorded:.4f} in its manifest, {mean:.4f} in its samples.")
    hashes = grouped((evaluation.questions_sha256, name) for name, evaluation in evaluations.items())
    for name in hashes.pop(None, ()):
        sentences.append(f"{name} does not record which questions it answered (questions_sha256).")
    if len(hashes) > 1:
        groups = "; ".join(f"{_short(digest)}: {', '.join(names)}" for digest, names in hashes.items())
        sentences.append(f"Not all models answered the same questions ({groups}).")
    return sentences + _other_settings(evaluations)


def _other_settings(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """A sentence if models were evaluated in different ways; neither batch size nor scores at steps are one.

    Nor is it one that the teacher wrote no answers: it is compared with nobody.
    """

    def said(evaluation: Evaluation, name: str) -> str:
        settings = [pair for pair in sorted(evaluation.settings.items()) if pair not in ASKED_BEFORE]
        no_way = {"batch_size", "at_steps"} | ({"generate"} if name == "teacher" else set())
        return ", ".join(f"{key} {value}" for key, value in settings if key not in no_way)

    ways = grouped((said(evaluation, name), name) for name, evaluation in evaluations.items())
    if len(ways) < 2:
        return []
    groups = "; ".join(f"{way}: {', '.join(names)}" for way, names in ways.items())
    return [f"Not all models were evaluated with the same settings ({groups})."]
