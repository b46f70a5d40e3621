"""The teacher, the student and the data of a preset: here, or to be had from the hub."""

from pathlib import Path

from huggingface_hub import constants

from kava.config.identity import model_path
from kava.config.schema import Config, DemoData
from kava.config.splits import split_files
from kava.doctor.check import Check, fail, ok, warning
from kava.errors import UserError
from kava.hub import Repository, cached, reach, repositories
from kava.model_files import tokenizer_fault, weights_fault


def sources(config: Config, fetch: str) -> list[Check]:
    """One line for each, and one for the hub; `fetch` is the command that downloads them."""
    lines, to_come = [], []
    for role, repository in repositories(config).items():
        folder = cached(repository) if repository else _local(config, role)
        fault = _fault(role, folder) if folder else None
        if repository and (folder is None or fault):
            to_come.append(repository)
            lines.append(warning(role, f"{repository} is not in the hub's cache, or not whole", f"run `{fetch}`"))
        elif fault:
            told, _, fix = fault.partition("; ")
            lines.append(fail(role, f"{_name(config, role)}: {told}", fix))
        else:
            lines.append(ok(role, f"{repository or _name(config, role)}, on this machine" if folder else "generated"))
    return [*lines, _hub(to_come)]


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


def _hub(to_come: list[Repository]) -> Check:
    if not to_come:
        return ok("hub", "not needed: all models and data are on this machine")
    if constants.HF_HUB_OFFLINE:
        return fail("hub", "HF_HUB_OFFLINE is set, and not all is here", "unset it, or run `kava fetch`")
    try:
        for repository in to_come:
            reach(repository)
    except UserError as error:
        told, _, fix = str(error).partition(": ")
        return fail("hub", told, fix)
    return ok("hub", f"{constants.ENDPOINT} answers, and has all of them")
