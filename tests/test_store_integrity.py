"""Damage to a store is named, never read, put aside, and mended by the next extraction."""

import errno
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from store_fixtures import CODECS_UNDER_TEST, LENGTHS, calibration, content, files, key, open_writer, write

from kava.cli import main
from kava.errors import UserError
from kava.exits import exit_status
from kava.files import sha256_json
from kava.kv import KeysValues
from kava.models.placement import Placed, in_turn
from kava.store.admin.verify import Verification, verify
from kava.store.reader import StoreReader
from kava.store.writer import StoreWriter
from kava.teacher.fill import fill

INT8 = {"kind": "int8"}
TRANSFORM = CODECS_UNDER_TEST[-1]
FOREIGN = {"batch_tokens": 64}
EVERY_CODEC = pytest.mark.parametrize("codec", CODECS_UNDER_TEST, ids=lambda codec: codec["kind"])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def named(parent: Path, codec: dict[str, Any], **changes: Any) -> Path:
    """Folder with the key in its name, as extraction makes it."""
    return parent / f"teacher-{codec['kind']}-{sha256_json(key(codec, **changes).model_dump())[:16]}"


def one_of_each_kind(folder: Path) -> list[str]:
    """A file of every array, of every sort of metadata, a record, and the manifest."""
    kinds: dict[str, str] = {}
    for name in files(folder):
        kind = re.sub(r"validation|train", "split", re.sub(r"/c/\d+", "/c/1", name.replace("0000", "")))
        if name.endswith("zarr.json"):
            kind = str(name.startswith("store.zarr/parameters")) + str(name.count("/"))
        kinds[kind] = name  # the last shard of each
    return sorted(kinds.values())


def read_everything(folder: Path) -> Iterator[torch.Tensor]:
    store = StoreReader(folder / "manifest.json")
    for split, lengths in LENGTHS.items():
        for example in range(len(lengths)):
            yield from (stored := store.read(split, example)).kv
            yield from stored.info


def without_quarantine(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if not name.startswith("quarantine")}


def put_aside(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "quarantine").rglob("*") if path.is_file()]


def names(found: Verification, file: str) -> bool:
    """Whether a problem names a file of the store's folder."""
    path = Path(file)
    return any(
        problem.file == file.removeprefix("store.zarr/")
        or problem.where in (file, f"shard {path.stem}" if path.parent.name == "shards" else file)
        for problem in found.problems
    )


@pytest.mark.parametrize(
    ("codec", "damage"),
    # A file is known by its checksum whatever wrote it; a transform has kinds of files that the others have not.
    [
        (INT8, flip_a_bit),
        *(pytest.param(codec, flip_a_bit, marks=pytest.mark.slow) for codec in CODECS_UNDER_TEST if codec != INT8),
        *(pytest.param(INT8, damage, marks=pytest.mark.slow) for damage in (truncate, Path.unlink)),
        pytest.param(TRANSFORM, Path.unlink, marks=pytest.mark.slow),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else value.__name__,
)
def test_damage_to_any_file_is_named_and_never_read_and_mended(
    codec: dict[str, Any], damage: Callable[[Path], None], tmp_path: Path
) -> None:
    sound = named(tmp_path / "sound", codec)
    write(sound, codec)
    expected = list(read_everything(sound))
    for number, name in enumerate(one_of_each_kind(sound)):
        folder = tmp_path / str(number) / sound.name
        shutil.copytree(sound, folder)
        damage(folder / name)
        damaged = (folder / name).read_bytes() if (folder / name).exists() else None
        assert names(verify(folder), name), f"{name} is not named: {verify(folder).problems}"
        # The manifest has a copy of each record; moments have gone into the statistics, and are not read again.
        if name.startswith("shards/") or ("/moments/c/" in name and damage is flip_a_bit):
            assert all(torch.equal(*pair) for pair in zip(read_everything(folder), expected, strict=True))
        else:
            with pytest.raises(UserError):
                list(read_everything(folder))
        write(folder, codec)
        assert without_quarantine(folder) == without_quarantine(sound), name
        assert damaged is None or damaged in put_aside(folder), f"{name} was not put aside"
        assert not verify(folder).problems


def write_foreign(folder: Path, codec: dict[str, Any]) -> None:
    """Store of another teacher, of the same sizes."""
    writer = open_writer(folder, codec, **FOREIGN)
    for split, shard in writer.pending():
        own = content(writer, split, shard)
        kv = KeysValues(*(block.flip(0) for block in own.kv))
        writer.write_shard(split, shard, own._replace(kv=kv))
    writer.seal()


def both(parent: Path, codec: dict[str, Any]) -> tuple[Path, Path, dict[str, bytes]]:
    """A store, one of another teacher, and the files of the first."""
    ours, theirs = named(parent, codec), named(parent, codec, **FOREIGN)
    write(ours, codec)
    write_foreign(theirs, codec)
    return ours, theirs, files(ours)


def is_refused_and_mended(folder: Path, codec: dict[str, Any], before: dict[str, bytes]) -> None:
    with pytest.raises(UserError):
        list(read_everything(folder))
    foreign = files(folder)
    write(folder, codec)
    assert without_quarantine(folder) == before
    moved = set(put_aside(folder))
    assert all(data in moved for name, data in foreign.items() if before.get(name) != data)


@EVERY_CODEC
@pytest.mark.parametrize("with_record", [False, True], ids=["files", "files-and-record"])
def test_a_shard_of_another_teacher_is_not_mixed_in(codec: dict[str, Any], with_record: bool, tmp_path: Path) -> None:
    ours, theirs, before = both(tmp_path, codec)
    copied = list(json.loads((theirs / "shards/train-00001.json").read_text())["files"])
    for name in copied:
        shutil.copy(theirs / "store.zarr" / name, ours / "store.zarr" / name)
    if with_record:
        shutil.copy(theirs / "shards/train-00001.json", ours / "shards/train-00001.json")
    problems = verify(ours).problems
    assert {problem.where for problem in problems} == {"shard train-00001"}
    assert any("foreign" in problem.what for problem in problems)
    is_refused_and_mended(ours, codec, before)


@EVERY_CODEC
@pytest.mark.parametrize(
    "parts", [["store.zarr"], ["store.zarr", "shards"], ["store.zarr", "shards", "manifest.json"]], ids="-".join
)
def test_a_store_swapped_for_another_is_refused(codec: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    ours, theirs, before = both(tmp_path, codec)
    for part in parts:
        (ours / part).rename(tmp_path / part)
        (theirs / part).rename(ours / part)
    assert any(
        theirs.name[-16:] in problem.what and "another teacher" in problem.what for problem in verify(ours).problems
    )
    is_refused_and_mended(ours, codec, before)


def test_parameters_of_another_store_are_not_adopted(tmp_path: Path) -> None:
    ours, theirs = named(tmp_path, TRANSFORM), named(tmp_path, TRANSFORM, **FOREIGN)
    write(ours, TRANSFORM)
    before = files(ours)
    writer = StoreWriter(theirs, open_writer(tmp_path / "other", TRANSFORM, **FOREIGN).contents, {})
    assert writer.open()
    writer.codec.calibrate(calibration(1100))
    with writer.exclusive():
        writer.write_parameters()
    shutil.rmtree(ours / "store.zarr/parameters")
    shutil.copytree(theirs / "store.zarr/parameters", ours / "store.zarr/parameters")
    shutil.copy(theirs / "shards/parameters.json", ours / "shards/parameters.json")
    assert any(problem.where == "shard parameters" for problem in verify(ours).problems)
    is_refused_and_mended(ours, TRANSFORM, before)


@EVERY_CODEC
def test_a_half_written_shard_is_named_and_written_again(codec: dict[str, Any], tmp_path: Path) -> None:
    sound, killed = tmp_path / "sound" / "store", tmp_path / "killed" / "store"
    write(sound, codec)
    write(killed, codec, only=2)
    (killed / "shards/train-00001.json").unlink()  # as after a kill between arrays and record
    problems = verify(killed).problems
    assert any("unfinished: 1 of 4 shards" in problem.what for problem in problems)
    assert any(problem.where == "shard train-00001" and "half written" in problem.what for problem in problems)
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        StoreReader(killed / "manifest.json")
    write(killed, codec)
    assert files(killed) == files(sound)


def test_files_of_no_shard_are_named_and_put_aside(tmp_path: Path) -> None:
    write(tmp_path, INT8)
    before = files(tmp_path)
    litter = tmp_path / "store.zarr/train/keys/codes/c/9/0/0/0"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"of nobody")
    (tmp_path / "store.zarr/train/keys/codes/c/1/0/0/0.1f.partial").write_bytes(b"of a killed run")
    assert any(problem.where == "shard train-00009" for problem in verify(tmp_path).problems)
    write(tmp_path, INT8)
    assert without_quarantine(tmp_path) == before
    assert put_aside(tmp_path).count(b"of nobody") == 1


def test_verify_names_every_damage_and_not_the_first_alone(capsys, tmp_path: Path) -> None:
    write(tmp_path, INT8)
    damaged = ["train/keys/codes/c/0/0/0/0", "train/values/scale/c/2/0/0/0", "validation/token/id/c/0", "zarr.json"]
    for name in damaged:
        flip_a_bit(tmp_path / "store.zarr" / name)
    assert main(["store", "verify", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert all(name in error for name in damaged)
    assert "shard train-00000" in error
    assert "shard train-00002" in error


def test_a_moved_store_opens_and_one_that_is_named_as_another_does_not(tmp_path: Path) -> None:
    write(named(tmp_path, INT8), INT8)
    expected = list(read_everything(named(tmp_path, INT8)))
    moved = named(tmp_path, INT8).rename(tmp_path / "moved")
    assert all(torch.equal(*pair) for pair in zip(read_everything(moved), expected, strict=True))
    assert not verify(moved).problems
    renamed = moved.rename(named(tmp_path, INT8, **FOREIGN))
    with pytest.raises(UserError, match=f"the folder is of store {renamed.name[-16:]}"):
        StoreReader(renamed / "manifest.json")
    assert verify(renamed).problems


class RandomTeacher:
    """In place of an extractor: content that depends on the shard alone."""

    def __init__(self, writer: StoreWriter) -> None:
        self.writer, self.contents = writer, writer.contents
        self.placed = Placed(None, torch.device("cpu"), in_turn)

    def shards(self, shards: list[tuple[str, int]], *_: Any) -> Any:
        return [content(self.writer, *shard) for shard in shards]


@pytest.mark.parametrize("writes", [0, 3, 11, 30])
def test_a_disk_that_fills_up_is_one_sentence_and_keeps_finished_shards(
    writes: int, capsys, monkeypatch, tmp_path: Path
) -> None:
    from zarr.storage import LocalStore

    sound, full = tmp_path / "sound" / "store", tmp_path / "full" / "store"
    write(sound, INT8)
    room = iter(range(writes))
    put = LocalStore.set

    async def put_while_there_is_room(*arguments: Any) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        await put(*arguments)

    def extract() -> None:
        writer = open_writer(full, INT8)
        fill(writer, lambda _: RandomTeacher(writer))  # type: ignore[arg-type, return-value]
        writer.seal()

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", put_while_there_is_room)
        assert exit_status("kava extract", extract) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the disk is full" in error
    assert not (full / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (full / "shards").glob("*.json")}
    assert len(kept) == writes // 10
    assert exit_status("kava extract", extract) == 0
    assert files(full) == files(sound)
    assert all((full / "shards" / name).stat().st_mtime_ns == when for name, when in kept.items())
