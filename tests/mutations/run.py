"""Put one fault after the other into the code and see whether the tests that are about it notice.

    python tests/mutations/run.py                      # all areas, two at a time; also `make mutants`
    python tests/mutations/run.py --area losses        # or --only NAME
    python tests/mutations/run.py --tests-from REV     # against `tests/` of another commit

Every worker has a copy of the tree. Third-party libraries are imported once; each fault runs in a fork of that process,
which puts it into its copy, imports `kava` from there and runs pytest on the tests that the entry names.
"""

import argparse
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from entries import REPOSITORY, Mutation, load, problems

# What tests import, so that no fork has to; nothing here may start threads or import kava.
PRELOAD = (
    "pytest", "torch", "torch.utils.checkpoint", "safetensors.torch", "scipy.stats", "statsmodels.stats.proportion",
    "zarr", "datasets", "accelerate", "peft", "bitsandbytes", "lm_eval", "lm_eval.models.huggingface", "altair",
    "pydantic", "yaml", "jinja2", "tqdm", "psutil", "transformers", "transformers.trainer",
    "transformers.models.qwen2.modeling_qwen2", "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
)  # fmt: skip
SECONDS = 120.0  # that a fault may take beyond three times what its tests take without it
PASSED, FAILED, INTERRUPTED, NO_TESTS = 0, 1, 2, 5  # pytest's exit statuses
KILLED, SURVIVED, INVALID, EQUIVALENT = "killed", "SURVIVED", "INVALID", "equivalent"


@dataclass
class Outcome:
    """What became of one fault."""

    name: str
    area: str
    outcome: str
    by: str
    seconds: float


@dataclass
class Run:
    """A fork that runs tests."""

    process: Any
    folder: Path
    mutation: Mutation | None
    started: float
    limit: float
    done: Callable[[int, str, float], None]

    def end(self, in_time: bool) -> None:
        """Stop it with all that it started, take the fault out again, and tell what came of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        if self.mutation:
            (self.folder / "pristine").replace(self.folder / "tree" / self.mutation.file)
        took = time.monotonic() - self.started
        if in_time:
            said = self.folder / ("by" if self.mutation else "output")
            self.done(self.process.exitcode, said.read_text(errors="replace"), took)
        else:  # a test that never ends does not pass
            self.done(FAILED, "time", took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", action="append", default=[], help="only this area; may be given again")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this mutation")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--tests-from", metavar="REV", help="run the tests of another commit against today's code")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write outcomes there, too")
    arguments = parser.parse_args()
    mutations = load()
    if wrong := problems(mutations):
        print("\n".join(wrong), file=sys.stderr)
        return 2
    chosen = [
        m
        for m in mutations
        if (not arguments.area or m.area in arguments.area) and (not arguments.only or m.name in arguments.only)
    ]
    started = time.monotonic()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in PRELOAD:
        import_module(name)
    gc.freeze()
    # As Ctrl-C does: the folder goes, and what runs in it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="kava-mutants-") as scratch:
        folders = [Path(scratch) / f"worker-{number}" for number in range(arguments.jobs)]
        for folder in folders:
            copy_tree(folder / "tree", arguments.tests_from)
        selectors = {m.name: selected(m, folders[0] / "tree", bool(arguments.tests_from)) for m in chosen}
        seconds, failing = baseline(selectors, folders)
        for selector in failing:
            print(f"fails without any fault: {selector}", file=sys.stderr)
        # Of another commit's tests those that pass on today's code are taken.
        if not arguments.tests_from:
            for m in chosen:
                if failed := set(selectors[m.name]) & set(failing):
                    print(f"{m.name} is not tried: {', '.join(sorted(failed))} fails", file=sys.stderr)
            chosen = [m for m in chosen if not set(selectors[m.name]) & set(failing)]
        usable = {name: [s for s in names if s in seconds] for name, names in selectors.items()}
        outcomes = attack(chosen, usable, seconds, folders)
    print_table(outcomes, time.monotonic() - started)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")
    untried = bool(failing) and not arguments.tests_from
    return int(untried or any(outcome.outcome in (SURVIVED, INVALID) for outcome in outcomes))


def copy_tree(tree: Path, tests_from: str | None) -> None:
    """A copy of what git knows or would take, with compiled modules, and `shared/` beside it where there is one."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True).stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file() and not (tests_from and name.startswith("tests/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tree / name)
    if tests_from:
        archive = subprocess.run(
            ["git", "archive", tests_from, "tests"], cwd=REPOSITORY, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(tree / "kava")], check=True)
    if (REPOSITORY.parent / "shared").is_dir():
        (tree.parent / "shared").symlink_to((REPOSITORY.parent / "shared").resolve())


def selected(mutation: Mutation, tree: Path, other_tests: bool) -> list[str]:
    """The tests of an entry; of another commit's tests whole files, as far as it has them."""
    tests = [test.partition("::")[0] if other_tests else test for test in mutation.tests]
    return [test for test in dict.fromkeys(tests) if (tree / test.partition("::")[0]).is_file()]


def baseline(selectors: dict[str, list[str]], folders: list[Path]) -> tuple[dict[str, float], list[str]]:
    """Seconds of each test file that passes as things are, and those that do not."""
    seconds: dict[str, float] = {}
    failing: list[str] = []

    def job(selector: str) -> tuple[None, list[str], float, Callable[[int, str, float], None]]:
        def done(status: int, output: str, took: float) -> None:
            if status in (PASSED, NO_TESTS):
                seconds[selector] = took
            else:
                failing.append(selector)
                print(output[-3000:], file=sys.stderr)

        return None, [selector], 600.0, done

    names = sorted({selector for of_one in selectors.values() for selector in of_one})
    in_forks([job(name) for name in names], folders)
    return seconds, failing


def attack(
    mutations: list[Mutation], selectors: dict[str, list[str]], seconds: dict[str, float], folders: list[Path]
) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}

    def job(m: Mutation) -> tuple[Mutation, list[str], float, Callable[[int, str, float], None]]:
        def done(status: int, by: str, took: float) -> None:
            outcome = {PASSED: SURVIVED, NO_TESTS: SURVIVED, FAILED: KILLED}.get(status, INVALID)
            if m.equivalent and outcome == SURVIVED:
                outcome = EQUIVALENT
            outcomes[m.name] = Outcome(m.name, m.area, outcome, by, round(took, 1))
            print(f"{len(outcomes)}/{len(mutations)} {outcome} {m.name} ({took:.0f} s) {by}", flush=True)

        return m, selectors[m.name], SECONDS + 3 * sum(seconds[s] for s in selectors[m.name]), done

    in_forks([job(m) for m in mutations], folders)
    return [outcomes[m.name] for m in mutations]


def in_forks(
    jobs: list[tuple[Mutation | None, list[str], float, Callable[[int, str, float], None]]], folders: list[Path]
) -> None:
    """Run each job in a fork, as many at a time as there are folders."""
    waiting, free = list(jobs), list(folders)
    running: dict[Any, Run] = {}
    try:
        while waiting or running:
            while waiting and free:
                mutation, selectors, limit, done = waiting.pop(0)
                if not selectors:
                    done(NO_TESTS, "no test", 0.0)
                    continue
                folder = free.pop()
                (folder / "by").write_text("")
                if mutation:
                    put_in(mutation, folder)
                process = get_context("fork").Process(target=child, args=(folder, mutation, selectors))
                process.start()
                running[process.sentinel] = Run(process, folder, mutation, time.monotonic(), limit, done)
            ended = set(connection.wait(list(running), timeout=1.0))
            late = {sentinel for sentinel, run in running.items() if time.monotonic() - run.started > run.limit}
            for sentinel in ended | late:
                run = running.pop(sentinel)
                run.end(sentinel in ended)
                free.append(run.folder)
    finally:
        # What was interrupted leaves nothing behind that still runs.
        for run in running.values():
            with suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)


def put_in(mutation: Mutation, folder: Path) -> None:
    """Put a fault into a copy of the tree; the file as it was, its times included, is kept aside."""
    target = folder / "tree" / mutation.file
    shutil.copy2(target, folder / "pristine")
    target.write_text(mutation.apply(target.read_text(encoding="utf-8")), encoding="utf-8")


class FirstFailure:
    """A pytest plugin that writes down what failed first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.path.read_text():
            self.path.write_text(report.nodeid)


def child(folder: Path, mutation: Mutation | None, selectors: list[str]) -> None:
    """The fork: run tests in a copy of the tree, with a fault in it; exits with pytest's status."""
    import pytest

    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tree, output = folder / "tree", (folder / "output").open("w")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.chdir(tree)
    # Compiled modules are told apart by whole seconds: a fault of the same length must not find those of the last one.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[:] = [
        str(tree),
        *(path for path in sys.path if Path(path).resolve() not in (REPOSITORY, Path(__file__).parent)),
    ]
    del sys.modules["entries"]
    assert "kava" not in sys.modules
    if mutation and mutation.file.endswith(".py"):
        try:
            import_module(mutation.file.removesuffix(".py").replace("/", "."))
        except Exception as error:  # whatever the fault makes of the module
            (folder / "by").write_text(f"does not import: {error!r}")
            os._exit(INTERRUPTED)
    options = [
        "-x",
        "-q",
        "--assert=plain",
        "-m",
        "not slow and not recipe",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(folder / "tmp"),
    ]
    status = int(pytest.main([*options, *selectors], plugins=[FirstFailure(folder / "by")]))
    os._exit(status)  # threads of libraries are not waited for


def print_table(outcomes: list[Outcome], seconds: float) -> None:
    """One line per area: its score is what was killed of all faults that a test could notice."""
    for outcome in outcomes:
        if outcome.outcome in (SURVIVED, INVALID):
            print(f"{outcome.outcome}: {outcome.area}/{outcome.name} {outcome.by}")
    print(f"{'area':<12} {'killed':>6} {'of':>4} {'score':>6} {'equivalent':>10} {'invalid':>7}")
    for area in [*dict.fromkeys(outcome.area for outcome in outcomes), "all"]:
        counts = Counter(outcome.outcome for outcome in outcomes if area in (outcome.area, "all"))
        of = counts[KILLED] + counts[SURVIVED]
        share = f"{counts[KILLED] / of:.0%}" if of else "-"
        print(f"{area:<12} {counts[KILLED]:>6} {of:>4} {share:>6} {counts[EQUIVALENT]:>10} {counts[INVALID]:>7}")
    print(f"{seconds / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
