"""What a change of a setting, of a file or of the code runs again: exactly what depends on it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from settings_fields import Setting, another, nested, settings_of

from kava.config import Config, Plan, Runtime, jobs
from kava.config.identity import model_identity
from kava.config.jobs import REFERENCES, RERUN_NOTHING, Job
from kava.config.load import merge
from kava.config.schema import ModelSettings

SEEDS = (1, 2)
# Arm a is pretrained, b has a projector as it was drawn, sft has none.
PRETRAINED, DRAWN, PLAIN = "a", "b", "sft"


def of_arm(*arms: str, stages: tuple[str, ...] = ("pretrain", "distill", "evaluate")) -> set[str]:
    return {f"{stage} {arm}" for stage in stages for arm in arms if (stage, arm) != ("pretrain", PLAIN)}


TRAINED = of_arm(PRETRAINED, DRAWN, PLAIN, stages=("distill", "evaluate"))
ARMS = TRAINED | of_arm(PRETRAINED, DRAWN, stages=("pretrain",))
READ_KV = of_arm(PRETRAINED, DRAWN)
EVERYTHING = ARMS | {"tokenize", "extract", "bench", *REFERENCES}

# Setting → what runs again, the report aside. A name that ends in a point is of all settings below it that have no row.
RERUNS: dict[str, set[str]] = {
    "experiment": ARMS,  # in a folder of its own
    "template": EVERYTHING,
    "chat": EVERYTHING,
    "chat.": EVERYTHING,
    "max_length": EVERYTHING,
    "student_reasoning": ARMS | {"tokenize"},
    "teacher.model": EVERYTHING,
    "teacher.revision": EVERYTHING,
    "teacher.trust_remote_code": EVERYTHING,
    "teacher.quantization": READ_KV | {"extract", "bench", "teacher"},
    "teacher.double_quantization": READ_KV | {"extract", "bench", "teacher"},
    "teacher.dtype": READ_KV | {"extract", "bench", "teacher"},
    "student.model": ARMS | {"student_base"},
    "student.revision": ARMS | {"student_base"},
    "student.trust_remote_code": ARMS | {"student_base"},
    "student.export_dtype": TRAINED,
    "student.lora": TRAINED,
    "student.lora.": TRAINED,
    "data": EVERYTHING,
    "data.path": EVERYTHING,
    "data.revision": EVERYTHING,
    "data.seed": EVERYTHING,
    "data.train": EVERYTHING,
    "data.validation": EVERYTHING,
    "data.test": EVERYTHING - {"extract", "bench"},  # the teacher's KV is of the training data
    "kv.keys": READ_KV | {"extract", "bench"},
    "kv.batch_tokens": READ_KV | {"extract", "bench"},
    "kv.shard_tokens": READ_KV | {"extract"},
    "kv.select": READ_KV | {"extract"},
    "kv.select.": READ_KV | {"extract"},
    "kv.codec": READ_KV | {"extract"},  # every kind is measured, whichever is configured
    "kv.codec.": READ_KV | {"extract", "bench"},
    "kv.signals.": READ_KV | {"extract"},
    "pretrain.": of_arm(PRETRAINED),
    "pretrain.batch_size": READ_KV,  # alignment is measured in batches of it
    "pretrain.log_every": READ_KV,
    "distill.": TRAINED,
    "evaluation.batch_size": of_arm(PRETRAINED, DRAWN, PLAIN, stages=("evaluate",)) | set(REFERENCES),
    "evaluation.max_new_tokens": of_arm(PRETRAINED, DRAWN, PLAIN, stages=("evaluate",)) | set(REFERENCES),
    "arms.a.": of_arm(PRETRAINED),
}
# What concerns the page alone: how a run went on, not what it made; runs that are added; words.
PAGE_ALONE = {
    "preset", "notes", "comparisons", "seeds",
    "pretrain.save_every", "pretrain.keep_checkpoints", "distill.save_every", "distill.keep_checkpoints",
    "distill.gradient_checkpointing", "distill.compile_layers",
}  # fmt: skip
# What runs nothing again, not even the report: where and beside what jobs run.
NOTHING = {"cache_dir", "extract_jobs", "tracker", "device", "vram_budget_gib"}
# What has one allowed value wherever it is in use.
FIXED = {"arms.a.select.scope"}
# A selection on reading has to be that of the stored scores: both change together.
TOGETHER = {"arms.a.select.": "kv.signals.importance."}
SIGNALS = {"hidden_states": True, "topk_logits": 8}
CONTEXTS: list[dict[str, Any]] = [
    {},
    {"kv": {"signals": SIGNALS | {"importance": {"kind": "rkv"}}}},
    {"kv": {"signals": SIGNALS | {"importance": {"kind": "rkv_window"}}}},
    {"kv": {"codec": {"target_cos": None, "target_ratio": 0.1}}},
    {"arms": {PRETRAINED: None, DRAWN: None}},
]
HUB = {"model": "somebody/something", "revision": "a" * 40}
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


Jobs = dict[tuple[str, int | None], Job]
SHARED = {"tokenize", "extract", "bench_store"}


def all_jobs(config: Config) -> Jobs:
    """Name of a job, and its seed if it has one → job."""
    plan = Plan(config)
    found: Jobs = {(name, None): getattr(plan, name) for name in ("tokenize", "extract", "bench", "report")}
    found |= {(role, None): plan.reference(role) for role in REFERENCES}
    for arm, settings in plan.config.arms.items():
        for seed in plan.config.seeds:
            for stage in ("pretrain", "distill", "evaluate") if settings.aligner else ("distill", "evaluate"):
                found[f"{stage} {arm}", seed] = getattr(plan, stage)(arm, seed)
    return found


def reruns(old: Jobs, new: Jobs, seeds: Collection[int] = SEEDS) -> set[str]:
    """Jobs that Snakemake would run where those of another configuration have finished, and those that are gone.

    What is shared lies in a folder that its key names, and runs where there is no such folder (its inputs are
    `ancient()`). What belongs to an arm runs where its params or the set of its inputs differ, or where an input is
    made anew. `seeds` are those of both.
    """

    def facts(job: Job) -> Any:
        own = job.params, job.output.parts[1:]  # wherever the cache lies
        return (
            own
            if job.stage in SHARED or "reference" in job.spec
            else (*own, {name: path.parts[1:] for name, path in job.inputs.items()})
        )

    common = {job for job in old.keys() | new.keys() if job[1] is None or job[1] in seeds}
    found = {job for job in common if job not in old or job not in new or facts(old[job]) != facts(new[job])}
    makers = {of_job.output: job for job, of_job in new.items()}
    of_arms = {job for job in common & new.keys() if job[1] is not None or job[0] == "report"}
    while more := {job for job in of_arms - found if any(makers[path] in found for path in new[job].inputs.values())}:
        found |= more
    names = {name for name, _ in found}
    for name in names - {"report"}:
        assert {job for job in common if job[0] == name} <= found, f"{name} runs again for some seeds only"
    return names


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
        "data.revision": ({"data": {"path": HUB["model"], "revision": HUB["revision"]}}, "b" * 40),
        "template": ({}, "{question} {answer}"),
        "comparisons": ({}, [[DRAWN, PRETRAINED]]),
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
    assert {name.rpartition(".")[2] for name in PAGE_ALONE if "." in name} == RERUN_NOTHING


def test_what_runs_nothing_again_and_where_sources_lie_reach_stages_beside_their_spec(base: dict[str, Any]) -> None:
    config = Config.model_validate(base)
    runtime = Runtime.of(config)
    assert runtime.sources == config.model_dump(include={"teacher", "student", "data"})
    execution = {f"{stage}.{name}" for stage in ("pretrain", "distill") for name in RERUN_NOTHING}
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
        assert stage == "evaluate" or job.spec["seed"] == seed
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


CHAT = {"chat": {}}
OWN_CODE = {"teacher": {"trust_remote_code": True}, "student": {"trust_remote_code": True}}
OF_TEACHER = READ_KV | {"extract", "bench", "teacher"}
OF_STUDENT = ARMS | {"student_base"}


@pytest.mark.parametrize(
    ("model", "file", "context", "expected"),
    [
        *(("teacher", file, {}, OF_TEACHER) for file in WEIGHTS),
        *(("teacher", file, {}, EVERYTHING) for file in TOKENIZER),
        *(("student", file, {}, OF_STUDENT) for file in (*WEIGHTS, *TOKENIZER, "generation_config.json")),
        ("teacher", "generation_config.json", {}, {"teacher"}),
        ("teacher", "chat_template.jinja", {}, set()),
        ("teacher", "chat_template.jinja", CHAT, EVERYTHING),
        ("teacher", "own_code.py", {}, set()),
        ("teacher", "own_code.py", OWN_CODE, EVERYTHING),
        ("student", "own_code.py", OWN_CODE, OF_STUDENT),
        *((model, "README.md", CHAT | OWN_CODE, set()) for model in ("teacher", "student")),
        *(("data", f"{split}.jsonl", {}, EVERYTHING - kept) for split, kept in
          (("train", set()), ("test", {"extract", "bench"}))),
    ],
)  # fmt: skip
def test_a_changed_file_runs_exactly_what_reads_it(
    model: str, file: str, context: dict[str, Any], expected: set[str], base: dict[str, Any]
) -> None:
    config = Config.model_validate(merge(base, context))
    path = Path(base["teacher"]["model"]).parent / model / file
    before = all_jobs(config)
    text = path.read_text()
    path.write_text(text[::-1])  # of the same size
    try:
        after = all_jobs(config)
    finally:
        path.write_text(text)
    assert reruns(before, after) - {"report"} == expected


def test_a_model_is_the_same_wherever_it_lies(base: dict[str, Any], tmp_path: Path) -> None:
    path = Path(base["teacher"]["model"])
    path_copy = tmp_path / "elsewhere"
    path_copy.mkdir()
    for file in path.iterdir():
        (path_copy / file.name).write_bytes(file.read_bytes())
    assert model_identity(ModelSettings(model=str(path))) == model_identity(ModelSettings(model=str(path_copy)))


def test_a_large_file_is_hashed_again_only_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = 17 << 20

    def hash_of(folder: str, last: bytes, changed: int) -> str:
        file = tmp_path / folder / "model.safetensors"
        file.parent.mkdir(exist_ok=True)
        (file.parent / "config.json").write_text("{}")
        with file.open("wb") as stream:
            stream.truncate(size - 1)
            stream.seek(size - 1)
            stream.write(last)
        os.utime(file, ns=(changed, changed))
        return model_identity(ModelSettings(model=str(file.parent)))["files"]["model.safetensors"]

    first = hash_of("one", b"1", 10**18)
    assert hash_of("one", b"2", 10**18 + 1) != first
    assert hash_of("two", b"3", 10**18) != first
    monkeypatch.setattr("kava.config.identity.sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    model_identity(ModelSettings(model=str(tmp_path / "two")), ("*.safetensors",))


def test_rows_of_every_parquet_file_are_in_the_key(base: dict[str, Any], tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (tmp_path / f"{name}.parquet").write_text(name)
    config = Config.model_validate(merge(base, {"data": {"path": str(tmp_path)}}))
    before = Plan(config).extract.params
    (tmp_path / "train-00001-of-00002.parquet").write_text("other rows")
    assert Plan(config).extract.params != before


def test_an_edited_generator_makes_other_problems(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(base | {"data": {"kind": "demo"}})
    before = Plan(config).tokenize.params
    monkeypatch.setattr("kava.config.identity.sha256_file", lambda path: f"edited {path.name}")
    assert "edited demo.py" in Plan(config).tokenize.params
    assert "edited demo.py" not in before


@pytest.mark.parametrize(
    ("what", "value", "expected"),
    [
        ("TOKENS_FORMAT", 99, EVERYTHING),
        ("STORE_FORMAT", 99, READ_KV | {"extract", "bench"}),
        ("BENCH_FORMAT", 99, {"bench"}),
        ("code_digest", lambda: "other code", ARMS),
    ],
)
def test_another_format_and_other_code_run_again_what_depends_on_them(
    what: str, value: Any, expected: set[str], base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(base)
    before = all_jobs(config)
    monkeypatch.setattr(jobs, what, value)
    assert reruns(before, all_jobs(config)) - {"report"} == expected
