"""Download all that a run reads from the hub, at the pinned revisions, so that it needs no network afterwards.

    kava fetch --preset qwen2.5-8gb
    HF_ENDPOINT=https://mirror.example kava fetch --preset qwen2.5-8gb

Files go to the hub's cache ($HF_HOME, else ~/.cache/huggingface). What is there and whole is left as it is: run it
again if it was stopped, and it goes on at the first file that is not whole; where a connection breaks, it goes on in
the middle of the file by itself. Then HF_HUB_OFFLINE=1 forbids the network to all commands. Local directories and
the demo's models need nothing.
"""

import argparse
import shutil
from pathlib import Path

from kava.commandline import CONFIGURATION, load_jobs, run_command
from kava.errors import UserError
from kava.files import nearest_folder
from kava.text import size


def main(argv: list[str] | None = None) -> int:
    return run_command("kava fetch", __doc__, argv, _fetch, *CONFIGURATION)


def _fetch(arguments: argparse.Namespace) -> None:
    jobs = load_jobs(arguments)
    _ = jobs.report  # says which path or revision is missing, before anything is downloaded

    from huggingface_hub import constants

    from kava.hub import download, measure, repositories
    from kava.models.on_disk import tokenizer_fault, weights_fault

    wanted = repositories(jobs.config)
    measured = {role: measure(repository) for role, repository in wanted.items() if repository}
    _require_space(Path(constants.HF_HUB_CACHE), sum(files.to_come for files in measured.values()))
    for role, repository in wanted.items():
        if repository is None:
            print(f"{role}: nothing to fetch, it is on this machine")
            continue
        files = measured[role]
        what = f"{size(files.bytes)} in {files.count} files, {size(files.to_come)} to come"
        print(f"{role}: {repository}, {what}", flush=True)
        folder = download(repository)
        print(f"{role}: {folder}", flush=True)
        if repository.kind == "model":
            for fault in (weights_fault, tokenizer_fault):
                if message := fault(folder, "choose another commit or repository"):
                    raise UserError(f"model {repository}: {message}")
    if measured:
        print("HF_HUB_OFFLINE=1 now runs it without a network")


def _require_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(nearest_folder(cache)).free
    if needed > free:
        raise UserError(
            f"{size(needed)} are to be downloaded to {cache}, where {size(free)} are free; make room, or set HF_HOME "
            "to a folder on another disk"
        )
