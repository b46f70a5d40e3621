"""Real extractions that are killed, run side by side, or in parts: one and the same store."""

import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from store_fixtures import files

from kava.cli import main
from kava.store.admin.verify import verify

pytestmark = pytest.mark.slow

KILLS = 10  # of each codec, so 20 in all
DATA = {"train": 64, "validation": 12, "test": 12}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["kava.stages.extract", "kava.teacher.fill", "kava.teacher.extractor", "kava.models.load", "datasets"]
)
EVERY_CODEC = pytest.mark.parametrize("codec", ["int8", "transform"])


def arguments(folder: Path, codec: str, *options: str, **settings: Any) -> list[str]:
    """Options of `kava` for the demo teacher and little data, with the cache in a folder."""
    kv = {"shard_tokens": 512, "codec": {"kind": codec}}
    file = folder / f"{codec}.yaml"
    file.write_text(yaml.safe_dump({"data": DATA, "kv": kv, "cache_dir": str(folder / "cache")} | settings))
    return ["--configfile", str(file), *options]


class Extraction:
    """A process that extracts, forked from one that has imported everything: each import would take seconds."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self._log = folder / f"{uuid.uuid4()}.log"
        self._process = CONTEXT.Process(target=_extract, args=(folder, self._log, options))
        self._process.start()

    def runs(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def finish(self) -> str:
        """What it logged; it must have ended well."""
        self._process.join(300)
        log = self._log.read_text()
        assert self._process.exitcode == 0, log
        return log


def _extract(folder: Path, log: Path, options: list[str]) -> None:
    os.chdir(folder)
    with log.open("w", buffering=1, encoding="utf-8") as sys.stderr:
        sys.exit(main(["extract", *options]))


def start(folder: Path, codec: str, *options: str, **settings: Any) -> Extraction:
    return Extraction(folder, arguments(folder, codec, *options, **settings))


def store(folder: Path) -> Path:
    (found,) = (folder / "cache" / "teacher_kv").iterdir()
    return found


def result(folder: Path) -> dict[str, bytes]:
    """Files of the store but the costs of making it."""
    return {name: data for name, data in files(store(folder)).items() if name != "cost.json"}


def written(log: str) -> int:
    """Shards that a process wrote."""
    return sum(map(int, re.findall(r"(\d+) shards written by this process", log)))


def prepare(folder: Path, tokens: Path) -> Path:
    """A folder with the token set in its cache."""
    folder.mkdir()
    shutil.copytree(tokens, folder / "cache" / "tokens")
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    assert main(["tokenize", *arguments(folder, "int8")]) == 0
    return folder / "cache" / "tokens"


@pytest.fixture(scope="module")
def uninterrupted(tokens: Path, tmp_path_factory) -> Any:
    """Codec → files of a store that one process made, the log, and the seconds it was open."""
    made: dict[str, tuple[dict[str, bytes], str, float]] = {}

    def make(codec: str) -> tuple[dict[str, bytes], str, float]:
        if codec not in made:
            folder = prepare(tmp_path_factory.mktemp(codec) / "whole", tokens)
            process = start(folder, codec)
            opened = wait_until(process, lambda: any(folder.glob("cache/teacher_kv/*/locks")))
            log = process.finish()
            made[codec] = result(folder), log, time.monotonic() - opened
            assert not verify(store(folder)).problems
        return made[codec]

    return make


def wait_until(process: Extraction, happened: Any) -> float:
    """Wait for something; returns when it happened."""
    while not happened() and process.runs():
        time.sleep(0.01)
    return time.monotonic()


@EVERY_CODEC
def test_a_store_that_was_killed_at_any_moment_equals_an_uninterrupted_one(
    codec: str, uninterrupted: Any, tokens: Path, tmp_path: Path
) -> None:
    expected, _, seconds = uninterrupted(codec)
    folder = prepare(tmp_path / "killed", tokens)
    moments = random.Random(codec)
    kills = 0
    while kills < KILLS:
        process = start(folder, codec)
        locks = folder.glob("cache/teacher_kv/*/locks/presence.lock")
        for path in locks:
            path.unlink()
        opened = wait_until(process, lambda: any(folder.glob("cache/teacher_kv/*/locks/presence.lock")))
        moment = opened + moments.uniform(0, seconds)
        wait_until(process, lambda moment=moment: time.monotonic() > moment)
        if process.runs():
            process.kill()
            kills += 1
            continue
        process.finish()  # it was faster; begin anew
        assert result(folder) == expected
        shutil.rmtree(store(folder))
    start(folder, codec).finish()
    assert result(folder) == expected
    assert not verify(store(folder)).problems


@EVERY_CODEC
def test_two_processes_share_the_shards_of_one_store(
    codec: str, uninterrupted: Any, tokens: Path, tmp_path: Path
) -> None:
    expected, log, _ = uninterrupted(codec)
    folder = prepare(tmp_path / "shared", tokens)
    logs = [process.finish() for process in [start(folder, codec), start(folder, codec)]]
    assert result(folder) == expected
    assert sum(map(written, logs)) == written(log)
    # One may still load the teacher while the other does it all; then it has waited.
    assert all(written(log) or re.search("works (on shard|in)", log) for log in logs), logs


@EVERY_CODEC
def test_the_shards_of_a_killed_process_are_taken_over(
    codec: str, uninterrupted: Any, tokens: Path, tmp_path: Path
) -> None:
    expected, log, _ = uninterrupted(codec)
    folder = prepare(tmp_path / "shared", tokens)
    victim = start(folder, codec)
    wait_until(victim, lambda: len(list(folder.glob("cache/teacher_kv/*/shards/train-*.json"))) >= 1)
    survivor = start(folder, codec)
    wait_until(survivor, lambda: len(list(folder.glob("cache/teacher_kv/*/shards/train-*.json"))) >= 5)
    was_alive = victim.runs()
    victim.kill()
    took = written(survivor.finish())
    assert was_alive
    assert 0 < took < written(log)
    assert result(folder) == expected


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_store_made_in_parts_is_the_same_and_sealing_loads_no_teacher(
    parts: int, uninterrupted: Any, tokens: Path, tmp_path: Path, monkeypatch
) -> None:
    expected, log, _ = uninterrupted("int8")
    folder = prepare(tmp_path / "parts", tokens)
    shares = []
    for part in range(1, parts + 1):
        shares.append(written(start(folder, "int8", "--part", f"{part}/{parts}").finish()))
        assert not (store(folder) / "manifest.json").exists()
    assert sum(shares) == written(log)
    assert max(shares) - min(shares) <= 1
    monkeypatch.setattr("kava.models.load.load_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    assert main(["extract", *arguments(folder, "int8")]) == 0
    assert result(folder) == expected


def test_peak_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    peaks = {}
    for examples in (128, 1024):
        folder = tmp_path / str(examples)
        folder.mkdir()
        settings = {
            "data": DATA | {"train": examples},
            "kv": {"shard_tokens": 2048, "codec": {"kind": "int8"}},
            "teacher": {"quantization": "none"},
        }
        assert main(["tokenize", *arguments(folder, "int8", **settings)]) == 0
        command = [sys.executable, "-m", "kava", "extract", *arguments(folder, "int8", **settings)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        cost = json.loads((store(folder) / "cost.json").read_text())
        peaks[examples] = cost["peak_memory_mib"]
    print(f"peak memory, MiB: {peaks}")
    assert peaks[1024] - peaks[128] < 60, peaks
