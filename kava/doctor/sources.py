"""The teacher, the student and the data of a preset: here, or to be had from the hub; and whether they go together."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from kava.cache.capture import require_known_rotation
from kava.cache.families import require_readable
from kava.config.identity import model_path
from kava.config.schema import Config, DemoData
from kava.config.splits import split_files
from kava.data.tokens import require_same_tokenizer
from kava.doctor.check import Check, fail, ok, warning
from kava.errors import UserError
from kava.hub import Repository, cached, measure, repositories
from kava.model_files import tokenizer_fault, weights_fault
from kava.models import check_model, load_model_config, load_tokenizer
from kava.text import size


@dataclass(frozen=True)
class Sources:
    """What was found of the teacher, the student and the data.

    Attributes
    ----------
    checks
        One line for each, one for the hub, and one for teacher and student as a pair.
    to_come
        Bytes that are still to be downloaded; None if the hub does not tell.
    """

    checks: list[Check]
    to_come: int | None


def sources(config: Config, fetch: str) -> Sources:
    """Look for them here, and at the hub for what is not here; `fetch` is the command that downloads them."""
    lines: list[Check] = []
    missing: list[Repository] = []
    absent = False
    for role, repository in repositories(config).items():
        folder = cached(repository) if repository else _local(config, role)
        fault = _fault(role, folder) if folder else None
        # A download mends what is not whole, and no model that is the wrong one.
        wrong = _unusable(config, role) if folder and role != "data" and (repository or not fault) else None
        absent |= role != "data" and bool(folder is None or fault)
        if wrong:
            lines.append(wrong)
        elif repository and (folder is None or fault):
            missing.append(repository)
            lines.append(warning(role, f"{repository} is not in the hub's cache, or not whole", f"run `{fetch}`"))
        elif fault:
            told, _, fix = fault.partition("; ")
            lines.append(fail(role, f"{_name(config, role)}: {told}", fix))
        else:
            lines.append(ok(role, f"{repository or _name(config, role)}, on this machine" if folder else "generated"))
    hub, to_come = _hub(missing, fetch)
    pair = None if absent else _pair(config)
    if pair and any(line.told == pair.told for line in lines):
        pair = None  # a model that cannot be read is no pair, and was named
    return Sources([*lines, hub, *([pair] if pair else [])], to_come)


def _unusable(config: Config, role: str) -> Check | None:
    """What keeps a model that is here from its part, by its settings and the headers of its weights."""
    settings = config.teacher if role == "teacher" else config.student
    try:
        check_model(settings.model_dump())
    except UserError as error:
        what, _, fix = str(error).partition("; ")
        return fail(role, what, fix)
    return None


def _pair(config: Config) -> Check:
    """Whether teacher and student are of families that KAVA knows, with one tokenizer."""
    teacher, student = config.teacher.model_dump(), config.student.model_dump()
    try:
        configs = [load_model_config(source) for source in (teacher, student)]
        for settings, read in zip((config.teacher, config.student), configs, strict=True):
            require_readable(read, settings.model)
        families = [read.model_type for read in configs]
        if config.kv.keys == "pre_rope":
            for family in families:
                require_known_rotation(family)
        require_same_tokenizer(load_tokenizer(teacher), load_tokenizer(student), [])
    except UserError as error:
        told, _, fix = str(error).partition("; ")
        return fail("pair", told, fix)
    return ok("pair", f"{families[0]} teaches {families[1]}, with one tokenizer")


def _name(config: Config, role: str) -> str:
    if role == "data":
        return config.data.kind if isinstance(config.data, DemoData) else config.data.path
    return config.teacher.model if role == "teacher" else config.student.model


def _local(config: Config, role: str) -> Path | None:
    """Directory of a model or data set that is not on the hub; None for data that is generated."""
    if role == "data":
        return None if isinstance(config.data, DemoData) else Path(config.data.path)
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
        told, _, fix = str(error).partition(": ")
        return fail("hub", told, fix), None
    return ok("hub", f"{constants.ENDPOINT} answers, and has all of them, {size(to_come)} to come"), to_come
