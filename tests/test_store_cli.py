"""`kava store`: what it says of stores, and what it deletes."""

import fcntl
import json
from pathlib import Path

import pytest
import yaml
from command_fixtures import in_a_folder_of_its_own  # noqa: F401
from store_fixtures import files, key, open_writer, write

from kava.cli import main
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY, load_config
from kava.files import sha256_json, write_json
from kava.store.layout import STATISTICS

INT8 = {"kind": "int8"}
CONFIG = ["--configfile", str(REPOSITORY / "config.yaml")]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def store_folder(codec: dict = INT8, cache: str = "results", **changes: object) -> Path:
    """Folder that a store of this key has."""
    name = f"teacher-{codec['kind']}-{sha256_json(key(codec, **changes).model_dump())[:16]}"
    return Path(cache) / "teacher_kv" / name


def kava(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_info_tells_what_a_store_holds_and_its_sizes_add_up(capsys) -> None:
    write(store_folder(), INT8)
    status, out, _ = kava(capsys, "store", "info", store_folder() / "manifest.json", "--json")
    facts = json.loads(out)
    measured = sum(len(data) for name, data in files(store_folder()).items() if name != "manifest.json")
    assert status == 0
    assert facts["key"] == store_folder().name.rsplit("-", 1)[1]
    assert facts["codec"]["bits_per_value"] > 8
    assert facts["bytes"] == sum(facts["arrays"].values()) == measured
    assert (facts["sealed"], facts["shards"]) == (True, {"count": 4, "finished": 4})
    assert "4 of 4 shards" in kava(capsys, "store", "info", store_folder())[1]


def test_info_tells_how_far_an_unfinished_store_is(capsys) -> None:
    write(store_folder(), INT8, only=2)
    facts = json.loads(kava(capsys, "store", "info", store_folder(), "--json")[1])
    assert (facts["sealed"], facts["shards"]) == (False, {"count": 4, "finished": 2})
    assert facts["tokens"] > 0
    assert "unfinished" in kava(capsys, "store", "info", store_folder())[1]


def test_info_lists_what_was_put_aside(capsys) -> None:
    write(store_folder(), INT8)
    damaged = store_folder() / "store.zarr" / STATISTICS / "keys/codes/c/1/0/0/0"
    damaged.write_bytes(b"junk")
    write(store_folder(), INT8)
    (move,) = json.loads(kava(capsys, "store", "info", store_folder(), "--json")[1])["quarantined"]
    assert "store.zarr/train/keys/codes/c/1/0/0/0" in move["files"]


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_folder_that_is_no_store_is_one_sentence(capsys, command: str) -> None:
    status, out, err = kava(capsys, "store", command, "nothing")
    assert (status, out) == (1, "")
    assert "nothing is no KV store" in err


@pytest.mark.parametrize("command", ["info", "verify"])
@pytest.mark.parametrize(
    ("stage", "said"),
    [("tokenize", "a token set"), ("evaluate", "an evaluation"), ("pretrain", "a projector"), ("distill", "a student")],
)
def test_a_manifest_of_another_stage_is_said_to_be_what_it_is(capsys, command: str, stage: str, said: str) -> None:
    folder = Path("results/tokens/demo-0123")
    write_json(folder / "manifest.json", {"stage": stage, "splits": {}})
    for given in (folder, folder / "manifest.json"):
        status, out, err = kava(capsys, "store", command, given)
        assert (status, out) == (1, "")
        assert f"{folder} is {said} and no KV store; `kava store ls` shows which folders are stores" in err
        assert "run extract" not in err


def test_verify_says_in_one_line_that_all_is_good(capsys) -> None:
    write(store_folder(), INT8)
    status, out, err = kava(capsys, "store", "verify", store_folder())
    assert (status, err) == (0, "")
    assert out.startswith("4 shards, ")
    assert out.endswith(" bytes: all good\n")
    found = json.loads(kava(capsys, "store", "verify", store_folder(), "--json")[1])
    assert found["problems"] == []
    assert found["bytes"] > 0


def test_verify_goes_on_after_an_unreadable_manifest(capsys) -> None:
    write(store_folder(), INT8)
    (store_folder() / "manifest.json").write_text("{")
    (store_folder() / "store.zarr/train/keys/codes/c/1/0/0/0").unlink()
    status, out, err = kava(capsys, "store", "verify", store_folder(), "--json")
    assert status == 1
    assert "manifest.json is not valid JSON" in err
    assert [p["where"] for p in json.loads(out)["problems"]] == ["manifest.json", "shard train-00001"]


def listed(capsys, *arguments: str) -> dict[str, dict]:
    status, out, _ = kava(capsys, "store", "ls", *CONFIG, "--json", *arguments)
    assert status == 0
    return {row["name"]: row for row in json.loads(out)}


def test_ls_tells_sealed_from_unfinished_and_who_uses_what(capsys) -> None:
    write(store_folder(), INT8)
    write(store_folder({"kind": "int4"}), {"kind": "int4"}, only=1)
    planned = Jobs(load_config(REPOSITORY / "config.yaml")).extract.output.parent
    planned.mkdir(parents=True)
    run("old", store_folder().name)
    rows = listed(capsys)
    assert rows[store_folder().name]["state"] == "sealed"
    assert rows[store_folder().name]["used_by"] == ["experiment old"]
    assert rows[store_folder({"kind": "int4"}).name]["state"] == "1 of 4 shards"
    assert rows[planned.name]["used_by_configuration"]
    text = kava(capsys, "store", "ls", *CONFIG)[1]
    assert all(name in text for name in rows)


def test_ls_of_an_empty_cache_says_so(capsys) -> None:
    assert "holds no stores" in kava(capsys, "store", "ls", *CONFIG, "--cache-dir", "elsewhere")[1]


def run(experiment: str, store: str | None) -> None:
    """A finished run of an experiment that read a store, or that does not say."""
    inputs = {"inputs": {"store": store}} if store else {}
    write_json(Path("results") / experiment / "flat/seed-1/student/manifest.json", {"stage": "distill"} | inputs)


def pruned(capsys, *arguments: str) -> list[str]:
    status, out, err = kava(capsys, "store", "prune", *CONFIG, "--json", *arguments)
    assert status == 0, err
    return [Path(row["path"]).name for row in json.loads(out)["candidates"]]


def test_prune_proposes_what_nobody_uses_and_deletes_only_when_told(capsys) -> None:
    write(store_folder(), INT8)
    write(store_folder({"kind": "int4"}), {"kind": "int4"})
    run("old", store_folder().name)
    assert pruned(capsys) == [store_folder({"kind": "int4"}).name]
    assert "--delete does it" in kava(capsys, "store", "prune", *CONFIG)[1]
    assert store_folder({"kind": "int4"}).exists()
    pruned(capsys, "--delete")
    assert not store_folder({"kind": "int4"}).exists()
    assert (store_folder() / "manifest.json").exists()


def test_prune_keeps_every_store_while_a_run_does_not_say_what_it_reads(capsys) -> None:
    write(store_folder(), INT8)
    run("old", None)
    (store_folder() / "quarantine/1").mkdir(parents=True)
    assert pruned(capsys, "--delete") == ["quarantine"]
    assert (store_folder() / "manifest.json").exists()
    assert "does not say what it reads" in kava(capsys, "store", "prune", *CONFIG)[2]


def test_prune_touches_nothing_in_a_shared_cache_but_what_is_named(capsys) -> None:
    folder = store_folder(cache="shared")
    write(folder, INT8)
    (folder / "quarantine/1").mkdir(parents=True)
    shared = ["--cache-dir", "shared", "--delete"]
    assert pruned(capsys, *shared) == []
    assert pruned(capsys, folder.name + "/quarantine", *shared) == ["quarantine"]
    assert folder.exists()
    assert pruned(capsys, folder.name.rsplit("-", 1)[1], *shared) == [folder.name]
    assert not folder.exists()


def test_prune_names_the_keys_there_are(capsys) -> None:
    write(store_folder(), INT8)
    status, _, err = kava(capsys, "store", "prune", "0123456789abcdef", *CONFIG, "--delete")
    assert status == 1
    assert f"no '0123456789abcdef'; there are: {store_folder().name}" in err


@pytest.mark.parametrize("lock", ["presence", "store", "train-00001"])
def test_prune_leaves_a_store_in_which_a_process_works(capsys, lock: str) -> None:
    write(store_folder(), INT8, only=1)
    path = store_folder() / "locks" / f"{lock}.lock"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH if lock == "presence" else fcntl.LOCK_EX)
        status, out, err = kava(capsys, "store", "prune", store_folder().name, *CONFIG, "--delete")
    assert status == 1
    assert "kept, in use" in out
    assert "wait for it or stop it" in err
    assert open_writer(store_folder(), INT8).pending() != []


def test_a_configuration_error_is_one_sentence(capsys, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump({"presets": "demo"}))
    status, out, err = kava(capsys, "store", "ls", "--configfile", bad)
    assert (status, out) == (1, "")
    assert "did you mean 'preset'" in err
