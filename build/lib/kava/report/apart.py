"""Questions of different evaluation sets kept apart: the same doc_id names another question in another set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kava.report.read import Run


def questions_apart(runs: Mapping[str, Mapping[str, Run]]) -> dict[str, dict[str, Run]]:
    """Runs (arm → seed → run) of which equal doc_ids name equal questions.

    Where the runs answered several sets, the digest of its set stands before each doc_id, so that nothing finds a
    question in common between two sets; else they stay as they are.
    """
    found = {_digest(run) for seeds in runs.values() for run in seeds.values()}
    if len(found) < 2:
        return {arm: dict(seeds) for arm, seeds in runs.items()}
    return {arm: {seed: _marked(run) for seed, run in seeds.items()} for arm, seeds in runs.items()}


def _digest(run: Run) -> str:
    return str(run.evaluation.manifest.get("questions_sha256"))


def _marked(run: Run) -> Run:
    digest = _digest(run)[:10]
    samples = {f"{digest}:{doc}": line for doc, line in run.evaluation.samples.items()}
    return replace(run, evaluation=replace(run.evaluation, samples=samples))
