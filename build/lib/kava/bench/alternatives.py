"""The same KV in formats that a few lines of code would reach for, as bf16, without token ids or checksums."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kava.bench.source import Source

# Enough for a ratio and a speed; gzip takes seconds for it.
MOST_BYTES: Final = 64 << 20

Tensors = dict[str, Tensor]


class Alternative(NamedTuple):
    """A format: what it holds and how, a function that writes a path, and one that reads it back whole."""

    how: str
    write: Callable[[Path, Tensors], object]
    read: Callable[[Path], object]


def measure_alternatives(source: Source, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Size and speed of each format, and why one was left out."""
    per_token = 4 * source.geometry.channels
    tokens = max(1, MOST_BYTES // per_token)
    kv = {name: tensor[:tokens].bfloat16() for name, tensor in source.kv["train"]._asdict().items()}
    raw = sum(tensor.nbytes for tensor in kv.values())
    found, skipped = {}, {}
    for name, alternative in FORMATS.items():
        path = folder / name
        try:
            started = time.monotonic()
            alternative.write(path, kv)
            written = time.monotonic()
            alternative.read(path)
            read = time.monotonic()
        except ModuleNotFoundError as error:
            skipped[name] = f"{error.name} is not installed: pip install kava[bench]"
            continue
        size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
        found[name] = {
            "how": alternative.how,
            "ratio": size / raw,
            "write_mb_s": raw / 1e6 / (written - started),
            "read_mb_s": raw / 1e6 / (read - written),
        }
    return found, skipped


def _bits(kv: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.view(torch.int16).numpy().view(np.uint16) for name, tensor in kv.items()}


def _write_safetensors(path: Path, kv: Tensors) -> None:
    from safetensors.torch import save_file

    save_file(kv, os.fspath(path))


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    # A copy, since the file is mapped and would else be read by whoever looks at it.
    return {name: tensor.clone() for name, tensor in load_file(os.fspath(path)).items()}


def _write_npz(path: Path, kv: Tensors) -> None:
    bits = _bits(kv)
    with path.open("wb") as file:
        np.savez_compressed(file, keys=bits["keys"], values=bits["values"])


def _read_npz(path: Path) -> Any:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _write_hdf5(path: Path, kv: Tensors) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, bits in _bits(kv).items():
            file.create_dataset(name, data=bits, compression="gzip", shuffle=True)


def _read_hdf5(path: Path) -> Any:
    import h5py

    with h5py.File(path) as file:
        return {name: file[name][...] for name in file}


def _write_zarr(path: Path, kv: Tensors) -> None:
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, bits in _bits(kv).items():
        group.create_array(name, data=bits)


def _read_zarr(path: Path) -> Any:
    import zarr

    return {name: array[...] for name, array in zarr.open_group(path, mode="r").arrays()}


FORMATS: Final = {
    "torch.save": Alternative("bf16", lambda path, kv: torch.save(kv, path), torch.load),
    "safetensors": Alternative("bf16", _write_safetensors, _read_safetensors),
    "npz": Alternative("bf16 as uint16, deflate", _write_npz, _read_npz),
    "hdf5_gzip": Alternative("bf16 as uint16, gzip 4 and shuffle, HDF5's own chunks", _write_hdf5, _read_hdf5),
    "zarr_default": Alternative("bf16 as uint16, Zarr's own chunks and zstd", _write_zarr, _read_zarr),
}
