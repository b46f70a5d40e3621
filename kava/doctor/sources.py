"""The teacher, the student and the data of a preset: here, or to be had from the hub; and whether they go together."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from huggingface_hub import constants

from kava.config.data import FolderData
from kava.config.gguf import gguf_file, is_gguf
from kava.config.identity import model_path
from kava.config.schema import Config
from kava.config.splits import split_files
from kava.data.doubts import tokenizer_doubts
from kava.data.fit import embedding_rows, reach, require_a_row_for_each_token, require_fit, require_more_tokens
from kava.data.positions import look
from kava.data.rows import load_rows
from kava.data.template import Wording
from kava.data.tokens import encode_example, require_same_tokenizer
from kava.doctor.check import Check, fail, ok, refused, warning
from kava.errors import UserError
from kava.hub import Repository, cached, measure, repositories
from kava.models.capture import require_known_rotation
from kava.models.families import require_readable
from kava.models.gguf import is_converted
from kava.models.gguf_header import gguf_fault
from kava.models.load import check_model, load_model_config, load_tokenizer
from kava.models.on_disk import tokenizer_fault, weights_fault
from kava.tasks import task_of
from kava.tasks.base import Rows
from kava.text import size

SAMPLE_ROWS: Final = 64
FORMS: Final = {"json": "JSON lines", "parquet": "Parquet", "saved": "saved by datasets"}


@dataclass(frozen=True)
class Sources:
    """The teacher, the student and the data."""

    checks: list[Check]  # one line for each, one for the hub, and one for teacher and student as a pair
    to_come: int | None  # bytes that are still to be downloaded; None if the hub does not say


def sources(config: Config, fetch: str) -> Sources:
    """Look for them here, and at the hub for what is not here; `fetch` is the command that downloads them."""
    lines: list[Check] = []
    missing: list[Repository] = []
    absent = False
    for role, repository in repositories(config).items():
        if role != "data" and is_gguf(_name(config, role)) and not is_converted(_name(config, role)):
            lines.append(_unconverted(role, _name(config, role), fetch))
            absent = True
            continue
        folder = cached(repository) if repository else _local(config, role)
        fault = _fault(role, folder) if folder else None
        # A download replaces what is not whole, and no model that is the wrong one.
        wrong = _unusable(config, role) if folder and role != "data" and (repository or not fault) else None
        absent |= role != "data" and bool(folder is None or fault)
        if wrong:
            lines.append(wrong)
        elif repository and (folder is None or fault):
            missing.append(repository)
            lines.append(warning(role, f"{repository} is not in the hub's cache, or not whole", f"run `{fetch}`"))
        elif fault:
            lines.append(refused(role, fault, f"{_name(config, role)}: "))
        elif folder and isinstance(config.data, FolderData) and role == "data":
            lines.append(_rows(config.data, str(repository or config.data.path), folder))
        else:
            lines.append(ok(role, f"{repository or _name(config, role)}, on this machine" if folder else "generated"))
    hub, to_come = _hub(missing, fetch)
    pair = [] if absent else _pair(config)
    # A model that cannot be read is no pair, and was named.
    named = {line.message for line in lines}
    return Sources([*lines, hub, *(line for line in pair if line.message not in named)], to_come)


def prompts(config: Config) -> Check:
    """Whether the longest test question and its answer fit the positions of the models; nothing is downloaded."""
    result = look(config)
    if result.lack:
        message, _, fix = result.lack.rpartition("; ")
        return fail("prompts", message, fix)
    if result.unknown:
        missing = f"not compared with the models' positions: {result.unknown}"
        return warning("prompts", missing, "get it, and run this again")
    if task_of(config.data.kind).harness is None:
        return ok("prompts", "the longest test row fits teacher and student")
    longest = config.evaluation.max_new_tokens
    return ok("prompts", f"the longest and an answer of {longest} tokens fit teacher and student")


def _rows(data: FolderData, name: str, folder: Path) -> Check:
    """Read all rows of a folder, which takes under a second for GSM8K, and say what a run would take of them."""
    try:
        form, _ = split_files(folder, "train")
        rows = load_rows(data.model_copy(update={"path": str(folder)}))
    except UserError as error:
        return refused("data", error, f"{name}: ")
    counts = ", ".join(f"{len(of_split):,} {split}" for split, of_split in rows.splits.items())
    message = f"{name}, on this machine: {FORMS[form]}, {counts} rows, {task_of(data.kind).form}"
    if rows.warnings:
        return warning("data", f"{message}; {' '.join(rows.warnings)}", "look at these rows before a run")
    return ok("data", message)


def _unconverted(role: str, model: str, fetch: str) -> Check:
    """Of a GGUF file from which no plain model was made yet: whether one can be, by its header."""
    if fault := gguf_fault(gguf_file(model)):
        return refused(role, fault, f"{model}: ")
    made = "a GGUF file, of which the first command that loads it makes a plain model"
    return warning(role, f"{model}, {made}", f"run `{fetch}` to have it made now")


def _unusable(config: Config, role: str) -> Check | None:
    """What keeps a model that is here from its part, by its settings and the headers of its weights."""
    try:
        check_model(config.models[role])
    except UserError as error:
        return refused(role, error)
    return None


def _pair(config: Config) -> list[Check]:
    """Whether teacher and student are of families that KAVA knows, with one tokenizer, and can read the data."""
    teacher, student = config.teacher, config.student
    try:
        configs = {role: load_model_config(of) for role, of in (("teacher", teacher), ("student", student))}
        for role, settings in (("teacher", config.teacher), ("student", config.student)):
            require_readable(configs[role], settings.model)
        families = [of_role.model_type for of_role in configs.values()]
        if config.kv.keys == "pre_rope":
            for family in families:
                require_known_rotation(family)
        tokenizer = load_tokenizer(teacher)
        require_same_tokenizer(tokenizer, load_tokenizer(student), [])
        doubts = _reading(config, tokenizer, configs)
    except UserError as error:
        return [refused("pair", error)]
    warnings = [warning("tokens", message, fix) for message, _, fix in (doubt.partition("; ") for doubt in doubts)]
    return [ok("pair", f"{families[0]} teaches {families[1]}, with one tokenizer"), *warnings]


def _reading(config: Config, tokenizer: Any, configs: dict[str, Any]) -> list[str]:
    """Doubts about the tokenizer; `UserError` for what teacher or student cannot read of some rows of the data."""
    if top := config.kv.signals.topk_logits:
        require_more_tokens(tokenizer, top)
    rows = embedding_rows(configs["student"])
    if rows is not None and any(arm.auxiliary.logit_kd for arm in config.arms.values()):
        require_a_row_for_each_token(config.student.model, tokenizer, rows)
    task, rows_read = task_of(config.data.kind), _sample(config)
    wording = Wording(tokenizer, config.template, config.chat, rows_read.conversations)
    sample = wording.rows(rows_read.splits["train"], "train")
    encoded = [encode_example(task, tokenizer, wording.template, row)["input_ids"] for row in sample]
    seen = reach([ids for ids in encoded if len(ids) <= config.max_length] or [[tokenizer.eos_token_id]])
    for role, model in (("teacher", config.teacher.model), ("student", config.student.model)):
        require_fit(role, model, configs[role], seen)
    return tokenizer_doubts(task, tokenizer, wording.template, sample)


def _sample(config: Config) -> Rows:
    """Some training rows, evenly spread; none of data that is not here or cannot be read, as its own line says."""
    repository = repositories(config)["data"]
    if repository and cached(repository) is None:
        return Rows({"train": []})
    try:
        rows = load_rows(config.data)
    except UserError:
        return Rows({"train": []})
    train = rows.splits["train"]
    return replace(rows, splits={"train": train[:: max(1, len(train) // SAMPLE_ROWS)]})


def _name(config: Config, role: str) -> str:
    if role == "data":
        return config.data.path if isinstance(config.data, FolderData) else config.data.kind
    return config.models[role].model


def _local(config: Config, role: str) -> Path | None:
    """Directory of a model or data set that is not on the hub; None for data that is generated."""
    if role == "data":
        return Path(config.data.path) if isinstance(config.data, FolderData) else None
    return Path(model_path(_name(config, role)))


def _fault(role: str, folder: Path) -> str | None:
    if role != "data":
        again = f"copy them to {folder}"
        return weights_fault(folder, again) or tokenizer_fault(folder, again)
    try:
        for split in ("train", "test"):
            split_files(folder, split)
    except UserError as error:
        return str(error)
    return None


def _hub(missing: list[Repository], fetch: str) -> tuple[Check, int | None]:
    if not missing:
        return ok("hub", "not needed: all models and data are on this machine"), 0
    if constants.HF_HUB_OFFLINE:
        fix = f"`unset HF_HUB_OFFLINE`, then `{fetch}`"
        return fail("hub", "HF_HUB_OFFLINE is set, and not all is here", fix), None
    try:
        to_come = sum(measure(repository, f"`{fetch}`").to_come for repository in missing)
    except UserError as error:
        message, _, fix = str(error).partition(": ")
        return fail("hub", message, fix), None
    return ok("hub", f"{constants.ENDPOINT} answers, and has all of them, {size(to_come)} to come"), to_come
