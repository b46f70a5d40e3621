"""Who uses what lies in a cache folder: the configuration at hand, and the experiments under results/."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kava.config.base import Settings
from kava.config.job import Job
from kava.config.jobs import Jobs
from kava.errors import UserError
from kava.files import paths_below, read_json, sha256_json
from kava.store.admin.describe import read_begun
from kava.store.admin.inventory import Entry


@dataclass(frozen=True)
class Usage:
    """Uses of keyed folders.

    Attributes
    ----------
    planned
        Names of the folders of the configuration.
    recorded
        Folder name → experiments whose finished runs read it.
    silent
        Runs that do not say what they read: unfinished, or made by a version that did not record it.
    """

    planned: frozenset[str]
    recorded: dict[str, list[str]]
    silent: list[str]

    def of(self, entry: Entry) -> list[str]:
        """Who uses an entry."""
        users = ["this configuration"] if entry.name in self.planned else []
        return users + [f"experiment {name}" for name in self._experiments(entry)]

    def _experiments(self, entry: Entry) -> Iterable[str]:
        if entry.kind == "answers":
            cache = entry.folder.parents[1]
            return sorted(
                {user for name, users in self.recorded.items() if _made_of(cache, name) == entry.key for user in users}
            )
        if entry.kind != "references":
            return self.recorded.get(entry.name, [])
        # Arms are compared with the references of their own token set, which are the same for either reasoning.
        try:
            tokens = read_json(entry.folder / "manifest.json")["spec"]["key"]["tokens"]
        except (UserError, KeyError):
            return []
        sets = tuple(f"-{sha256_json(tokens | {'student_reasoning': r})[:16]}" for r in ("full", "equations"))
        return sorted({user for name, users in self.recorded.items() if name.endswith(sets) for user in users})


def usage(plan: Jobs) -> Usage:
    """Uses by a plan, and by every experiment of its results folder."""
    jobs: list[Job[Settings]] = [plan.tokenize, plan.extract, *(plan.reference(role) for role in plan.references)]
    jobs += [plan.write] if plan.write else []
    recorded: dict[str, list[str]] = {}
    silent = []
    for run in paths_below(plan.results, "*/*/seed-*/*"):
        if run.name not in ("projector", "student"):
            continue
        inputs = _inputs(run / "manifest.json")
        if inputs is None:
            silent.append(str(run))
        for name in (inputs or {}).values():
            users = recorded.setdefault(name, [])
            experiment = run.relative_to(plan.results).parts[0]
            users += [experiment] if experiment not in users else []
    return Usage(frozenset(job.output.parent.name for job in jobs), recorded, silent)


def token_sets_of_stores(cache: Path) -> set[str]:
    """What every store of a cache, finished or not, was made from, as `token_set` names it."""
    found = set()
    for folder in paths_below(cache, "teacher_kv/*"):
        with suppress(UserError, KeyError):
            found.add(sha256_json(read_begun(folder)["spec"]["tokens"]))
    return found


def token_set(entry: Entry) -> str | None:
    """Hash of a token set without the test questions and the student's reasoning, on which no store depends."""
    try:
        spec = read_json(entry.folder / "manifest.json")["spec"]
        data = {name: spec["data"][name] for name in ("source", "train")}
        return sha256_json(
            {name: value for name, value in spec.items() if name != "student_reasoning"} | {"data": data}
        )
    except (UserError, KeyError):
        return None


def _made_of(cache: Path, name: str) -> str | None:
    """Key of the teacher's answers that a token set was made of; None for gold ones, and for what is no token set."""
    try:
        answers = read_json(cache / "tokens" / name / "manifest.json")["spec"].get("answers")
    except (UserError, KeyError):
        return None
    return sha256_json(answers)[:16] if answers else None


def _inputs(manifest: Path) -> dict[str, str] | None:
    try:
        return read_json(manifest).get("inputs")
    except UserError:
        return None
