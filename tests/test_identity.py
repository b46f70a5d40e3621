"""What a change of a setting runs again: exactly what depends on it."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from job_fixtures import (
    ARMS,
    DRAWN,
    EVERYTHING,
    PLAIN,
    PRETRAINED,
    READ_KV,
    TRAINED,
    all_jobs,
    of_arm,
    reruns,
    settings_of_a_run,  # noqa: F401
)
from settings_fields import Setting, another, nested, settings_of

from kava.config import Config, Runtime
from kava.config.jobs import REFERENCES
from kava.config.load import merge
from kava.config.models import Teacher
from kava.config.training import Distill, Pretrain

# A name in `references`, as `settings_fields` walks them.
FURTHER = "a"
# All evaluations: each is compared with what the teacher finds likeliest.
COMPARED = of_arm(PRETRAINED, DRAWN, PLAIN, stages=("evaluate",)) | set(REFERENCES)
# Setting → what runs again, the report aside. A name that ends in a point is of all settings below it that have no row.
RERUNS: dict[str, set[str]] = {
    "experiment": ARMS,  # in a folder of its own
    "template": EVERYTHING,
    "chat": EVERYTHING,
    "chat.": EVERYTHING,
    "max_length": EVERYTHING,
    "student_reasoning": ARMS | {"tokenize", "student_base"},
    "teacher.model": EVERYTHING,
    "teacher.revision": EVERYTHING,
    "teacher.trust_remote_code": EVERYTHING,
    "teacher.quantization": READ_KV | {"extract", "bench"} | COMPARED,
    "teacher.double_quantization": READ_KV | {"extract", "bench"} | COMPARED,
    "teacher.dtype": READ_KV | {"extract", "bench"} | COMPARED,
    "student.model": ARMS | {"student_base"},
    "student.revision": ARMS | {"student_base"},
    "student.trust_remote_code": ARMS | {"student_base"},
    "student.keep_layers": ARMS | {"student_base"},
    "student.export_dtype": TRAINED,
    "student.lora": TRAINED,
    "student.lora.": TRAINED,
    "data": EVERYTHING,
    "data.path": EVERYTHING,
    "data.revision": EVERYTHING,
    "data.seed": EVERYTHING,
    "data.train": EVERYTHING,
    "data.validation": EVERYTHING,
    "data.answers": EVERYTHING | {"write"},
    "data.answers.": EVERYTHING | {"write"},
    "data.test": EVERYTHING - {"extract", "bench"},  # the teacher's KV is of the training data
    "kv.keys": READ_KV | {"extract", "bench"},
    "kv.batch_tokens": READ_KV | {"extract", "bench"},
    "kv.shard_tokens": READ_KV | {"extract"},
    "kv.select": READ_KV | {"extract"},
    "kv.select.": READ_KV | {"extract"},
    "kv.codec": READ_KV | {"extract"},  # every kind is measured, whichever is configured
    "kv.codec.": READ_KV | {"extract", "bench"},
    "kv.signals.": READ_KV | {"extract"},
    "pretrain": READ_KV,  # kinds have batch sizes of their own
    "pretrain.": of_arm(PRETRAINED),
    "pretrain.batch_size": READ_KV,  # alignment is measured in batches of it
    "pretrain.log_every": READ_KV,
    "distill.": TRAINED,
    "evaluation.batch_size": COMPARED,
    "evaluation.max_new_tokens": COMPARED,
    "evaluation.generate": COMPARED,
    "evaluation.teacher": COMPARED,
    "evaluation.at_steps": TRAINED | set(REFERENCES),  # a step is kept by training, and validation is scored
    "arms.a.": of_arm(PRETRAINED),
    "references.a.": {FURTHER},
}
# What concerns the page alone: how a run went on, not what it made; runs that are added; words.
PAGE_ALONE = {
    "preset", "notes", "comparisons", "seeds", "report.codecs",
    "pretrain.save_every", "pretrain.keep_checkpoints", "distill.save_every", "distill.keep_checkpoints",
    "distill.gradient_checkpointing", "distill.compile_layers", "teacher.placement", "teacher.wave_tokens",
}  # fmt: skip
# What runs nothing again, not even the report: where and beside what jobs run.
NOTHING = {"cache_dir", "extract_jobs", "tracker", "device", "vram_budget_gib"}
# What has one allowed value wherever it is in use.
FIXED = {"arms.a.select.scope"}
# A selection on reading has to be that of the stored scores: both change together.
TOGETHER = {"arms.a.select.": "kv.signals.importance."}
SIGNALS = {"hidden_states": True, "token_hidden_states": [0, 2], "topk_logits": 8}
CONTEXTS: list[dict[str, Any]] = [
    {},
    {"kv": {"signals": SIGNALS | {"importance": {"kind": "rkv"}}}},
    {"kv": {"signals": SIGNALS | {"importance": {"kind": "rkv_window"}}}},
    {"kv": {"codec": {"target_cos": None, "target_ratio": 0.1}}},
    {"arms": {PRETRAINED: None, DRAWN: None}},
    {"arms": {PRETRAINED: {"pretrain_projector": False}}},
    {"data": {"path": "somebody/something", "revision": "a" * 40}},
    {"data": {"answers": {"temperature": 0.5}}},
    {"data": {"path": "somebody/something", "revision": "a" * 40, "answers": {"temperature": 0.5, "keep": "all"}}},
]
LISTED = {"kind": "list", "layers": [0, 1]}
HUB = {"model": "somebody/something", "revision": "a" * 40}


def classified(path: str) -> set[str] | None:
    """What a row says that a change of a setting runs again."""
    if path in NOTHING:
        return set()
    if path in PAGE_ALONE:
        return {"report"}
    prefixes = [path, *(path[: dot.end()] for dot in reversed(list(re.finditer(r"\.", path))))]
    row = next((RERUNS[prefix] for prefix in prefixes if prefix in RERUNS), None)
    return None if row is None else row | {"report"}


def changed(setting: Setting, base: dict[str, Any]) -> tuple[Config, Config] | None:
    """The configuration before and after a change of a setting."""
    root = Path(base["teacher"]["model"]).parent
    values: dict[str, tuple[dict[str, Any], Any]] = {
        "teacher.model": ({}, str(root / "other")),
        "student.model": ({}, str(root / "other")),
        "data.path": ({}, str(root / "other_data")),
        "teacher.revision": ({"teacher": HUB}, "b" * 40),
        "student.revision": ({"student": HUB}, "b" * 40),
        "data.answers": ({}, "teacher"),
        "data.answers.keep": ({"data": {"answers": "teacher"}}, "all"),
        "references.a.model": ({"references": {FURTHER: {"model": str(root / "other")}}}, str(root / "teacher")),
        "references.a.revision": ({"references": {FURTHER: HUB}}, "b" * 40),
        "references.a.trust_remote_code": ({"references": {FURTHER: {"model": str(root / "other")}}}, True),
        "data.revision": ({"data": {"path": HUB["model"], "revision": HUB["revision"]}}, "b" * 40),
        "template": ({}, "{question} {answer}"),
        "evaluation.at_steps": ({}, [10, 20]),
        "comparisons": ({}, [[DRAWN, PRETRAINED]]),
        "kv.signals.topk_segments": ({}, ["reasoning", "answer"]),
        "kv.signals.token_hidden_states": ({}, [0, 2]),
        "arms.a.aligner.layer_map.layers": (
            {"arms": {PRETRAINED: {"aligner": {"kind": "structured", "layer_map": LISTED}}}},
            [0, 2],
        ),
        "arms.a.aligner.match.layer_map.layers": (
            {"arms": {PRETRAINED: {"aligner": {"kind": "flat_matched", "match": {"layer_map": LISTED}}}}},
            [0, 2],
        ),
        "arms.a.auxiliary.hidden.layers": (
            {"kv": {"signals": SIGNALS}, "arms": {PRETRAINED: {"auxiliary": {"hidden": {}}}}},
            [0, 2],
        ),
    }
    if setting.path in values:
        context, value = values[setting.path]
        before = merge(base, context)
        return tuple(Config.model_validate(x) for x in (before, merge(before, nested(setting.path, value))))  # type: ignore[return-value]
    return another(setting, base, CONTEXTS)


@pytest.mark.parametrize("setting", list(settings_of()), ids=str)
def test_a_change_of_a_setting_runs_exactly_what_depends_on_it(setting: Setting, base: dict[str, Any]) -> None:
    expected = classified(setting.path)
    assert expected is not None, (
        f"nobody has said what a change of {setting.path} runs again: give it a row in RERUNS of {Path(__file__).name} "
        "(or name it in PAGE_ALONE or NOTHING), and see in kava/config/jobs.py that it is in the spec of those jobs"
    )
    pair = changed(setting, base)
    if pair is None and (other := next((TOGETHER[x] for x in TOGETHER if setting.path.startswith(x)), None)):
        pair, expected = _changed_together(setting, other, base), expected | (classified(other) or set())
    if setting.path in FIXED:
        assert pair is None, f"{setting.path} can be changed now: take it out of FIXED"
        return
    assert pair is not None, f"no other valid value of {setting.path} was found: give one in `changed`"
    before, after = (all_jobs(config) for config in pair)
    expected &= {name for name, _ in before.keys() | after.keys()}
    assert reruns(before, after) == expected, (
        f"{setting.path} runs other jobs again than its row in {Path(__file__).name} says: mend kava/config/jobs.py, "
        "or the row"
    )


def _changed_together(setting: Setting, other: str, base: dict[str, Any]) -> tuple[Config, Config] | None:
    name = setting.path.rpartition(".")[2]
    for context in CONTEXTS:
        before = reduce(merge, (*setting.given, context), base)
        for value in ("all", 9, 5, 0.25):
            after = merge(merge(before, nested(setting.path, value)), nested(f"{other}{name}", value))
            try:
                return Config.model_validate(before), Config.model_validate(after)
            except ValueError:
                continue
    return None


def test_rows_are_of_settings_that_there_are() -> None:
    paths = {setting.path for setting in settings_of()}
    named = {*RERUNS, *PAGE_ALONE, *NOTHING, *FIXED}
    assert [name for name in named if name not in paths and not any(path.startswith(name) for path in paths)] == []
    of_phases = {name for name in PAGE_ALONE if name.startswith(("pretrain.", "distill."))}
    assert of_phases == {f"pretrain.{name}" for name in Pretrain.how()} | {f"distill.{name}" for name in Distill.how()}
    assert {name for name in PAGE_ALONE if name.startswith("teacher.")} == {f"teacher.{n}" for n in Teacher.how()}
    assert Config.how() == NOTHING


def test_what_runs_nothing_again_and_where_sources_lie_reach_stages_beside_their_spec(base: dict[str, Any]) -> None:
    config = Config.model_validate(base)
    runtime = Runtime.of(config)
    assert runtime.sources == config.model_dump(include={"teacher", "student", "data"})
    execution = {name for name in PAGE_ALONE if name.startswith(("pretrain.", "distill.", "teacher."))}
    for setting in settings_of():
        if setting.path in {"tracker", "device", "vram_budget_gib", *execution}:
            pair = changed(setting, base)
            assert pair is not None
            assert Runtime.of(pair[0]) != Runtime.of(pair[1]), setting.path


def test_every_run_reads_what_its_own_seed_made(base: dict[str, Any]) -> None:
    config = Config.model_validate(base)
    found = all_jobs(config)
    report = found["report", None]
    assert len({job.output for job in found.values()}) == len(found)
    for (name, seed), job in found.items():
        stage, _, arm = name.partition(" ")
        if seed is None:
            continue
        of_run = {part: found.get((f"{part} {arm}", seed)) for part in ("pretrain", "distill", "evaluate")}
        made = {part: of_part.output if of_part else None for part, of_part in of_run.items()}
        assert stage == "evaluate" or job.spec.seed == seed
        assert job.inputs.get("projector") == (made["pretrain"] if stage == "distill" else None)
        assert job.inputs.get("student") == (made["distill"] if stage == "evaluate" else None)
        for part, of_stage in (("projector", "pretrain"), ("student", "distill"), ("evaluation", "evaluate")):
            assert report.inputs.get(f"{arm}/seed-{seed}/{part}") == made[of_stage]
    for role in REFERENCES:
        assert report.inputs[role] == found[role, None].output
    for name in ("tokenize", "extract", "bench", *REFERENCES):
        assert re.search(r"-[0-9a-f]{16}$", found[name, None].output.parent.name), (
            "a store is known by its folder's key"
        )
