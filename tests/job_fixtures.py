"""All jobs of a small run by name, and which of them another configuration, or another file, runs again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from kava.config import Config, Jobs
from kava.config.job import Job
from kava.config.jobs import REFERENCES

SEEDS = (1, 2)
# Arm a is pretrained, b has a projector as it was drawn, sft has none.
PRETRAINED, DRAWN, PLAIN = "a", "b", "sft"


def of_arm(*arms: str, stages: tuple[str, ...] = ("pretrain", "distill", "evaluate")) -> set[str]:
    return {f"{stage} {arm}" for stage in stages for arm in arms if (stage, arm) != ("pretrain", PLAIN)}


TRAINED = of_arm(PRETRAINED, DRAWN, PLAIN, stages=("distill", "evaluate"))
ARMS = TRAINED | of_arm(PRETRAINED, DRAWN, stages=("pretrain",))
READ_KV = of_arm(PRETRAINED, DRAWN)
EVERYTHING = ARMS | {"tokenize", "extract", "bench", *REFERENCES}
WEIGHTS = ("config.json", "model.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


@pytest.fixture(scope="module", name="base")
def settings_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models and data are a few bytes: nothing here reads more of them than their hashes."""
    root = tmp_path_factory.mktemp("sources")
    for model in ("teacher", "student", "other"):
        (root / model).mkdir()
        for name in (*WEIGHTS, *TOKENIZER, "generation_config.json", "chat_template.jinja", "README.md", "own_code.py"):
            (root / model / name).write_text(f"{name} of {model}")
    for data in ("data", "other_data"):
        (root / data).mkdir()
        for split in ("train", "test"):
            (root / data / f"{split}.jsonl").write_text(f"{split} of {data}")
    return {
        "teacher": {"model": str(root / "teacher")},
        "student": {"model": str(root / "student")},
        "data": {"kind": "gsm8k", "path": str(root / "data"), "train": 9, "test": 5, "validation": 4},
        "arms": {
            PRETRAINED: {"aligner": {"kind": "structured"}, "pretrain_projector": True},
            DRAWN: {"aligner": {"kind": "flat"}},
            PLAIN: {"aligner": None},
        },
        "seeds": list(SEEDS),
    }


ByStage = dict[tuple[str, int | None], Job]
SHARED = {"write", "tokenize", "extract", "bench_store"}


def all_jobs(config: Config) -> ByStage:
    """Name of a job, and its seed if it has one → job."""
    plan = Jobs(config)
    found: ByStage = {(name, None): getattr(plan, name) for name in ("tokenize", "extract", "bench", "report")}
    found |= {("write", None): plan.write} if plan.write else {}
    found |= {(role, None): plan.reference(role) for role in plan.references}
    for arm, settings in plan.config.arms.items():
        for seed in plan.config.seeds:
            for stage in ("pretrain", "distill", "evaluate") if settings.aligner else ("distill", "evaluate"):
                found[f"{stage} {arm}", seed] = getattr(plan, stage)(arm, seed)
    return found


def reruns(old: ByStage, new: ByStage, seeds: Collection[int] = SEEDS) -> set[str]:
    """Jobs that Snakemake would run where those of another configuration have finished, and those that are gone.

    What is shared lies in a folder that its key names, and runs where there is no such folder (its inputs are
    `ancient()`). What belongs to an arm runs where its params or the set of its inputs differ, or where an input is
    made anew. `seeds` are those of both.
    """

    def facts(job: Job) -> Any:
        own = job.params, job.output.parts[1:]  # wherever the cache lies
        return (
            own
            if job.stage in SHARED or job.output.parts[1] == "references"
            else (*own, {name: path.parts[1:] for name, path in job.inputs.items()})
        )

    common = {job for job in old.keys() | new.keys() if job[1] is None or job[1] in seeds}
    for job in common & old.keys() & new.keys():
        if old[job].stage in SHARED or old[job].output.parts[1] == "references":
            folders = {of_job.output.parent.name for of_job in (old[job], new[job])}
            assert (len(folders) == 1) == (old[job].params == new[job].params), f"{job[0]}: another key, another folder"
    found = {job for job in common if job not in old or job not in new or facts(old[job]) != facts(new[job])}
    makers = {of_job.output: job for job, of_job in new.items()}
    of_arms = {job for job in common & new.keys() if job[1] is not None or job[0] == "report"}
    while more := {job for job in of_arms - found if any(makers[path] in found for path in new[job].inputs.values())}:
        found |= more
    names = {name for name, _ in found}
    for name in names - {"report"}:
        assert {job for job in common if job[0] == name} <= found, f"{name} runs again for some seeds only"
    return names
