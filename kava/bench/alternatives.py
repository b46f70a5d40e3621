"""The same KV in formats that a few lines of code would reach for, as bf16, without token ids or checksums."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from kava.bench.source import Source
from kava.store.admin.inventory import total_bytes

# Enough for a ratio and a speed; gzip takes seconds for it.
MOST_BYTES: Final = 64 << 20

Tensors = dict[str, Tensor]


def measure_alternatives(source: Source, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Size and speed of each format, and why one was left out."""
    tokens = max(1, MOST_BYTES // (4 * source.geometry.channels))
    kv = {name: tensor[:tokens].bfloat16() for name, tensor in source.kv["train"]._asdict().items()}
    raw = sum(tensor.nbytes for tensor in kv.values())
    figures, skipped = {}, {}
    for name, (how, write) in FORMATS.items():
        path = folder / name
        try:
            started = time.monotonic()
            read = write(path, kv)
            written = time.monotonic()
            read()
            done = time.monotonic()
        except ModuleNotFoundError as error:
            skipped[name] = f"{error.name} is not installed: pip install kava[bench]"
            continue
        size = total_bytes(path) if path.is_dir() else path.stat().st_size
        speeds = {"write_mb_s": raw / 1e6 / (written - started), "read_mb_s": raw / 1e6 / (done - written)}
        figures[name] = {"how": how, "ratio": size / raw} | speeds
    return figures, skipped


def _bits(kv: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.view(torch.int16).numpy().view(np.uint16) for name, tensor in kv.items()}


# Each writes a path, and returns what reads it back whole.
def _torch(path: Path, kv: Tensors) -> Callable[[], object]:
    torch.save(kv, path)
    return lambda: torch.load(path)


def _safetensors(path: Path, kv: Tensors) -> Callable[[], object]:
    from safetensors.torch import load_file, save_file

    save_file(kv, os.fspath(path))
    # A copy, since the file is mapped and would else be read by whoever looks at it.
    return lambda: {name: tensor.clone() for name, tensor in load_file(os.fspath(path)).items()}


def _npz(path: Path, kv: Tensors) -> Callable[[], object]:
    with path.open("wb") as file:
        np.savez_compressed(file, keys=_bits(kv)["keys"], values=_bits(kv)["values"])

    def read() -> object:
        with np.load(path) as archive:
            return dict(archive)

    return read


def _hdf5(path: Path, kv: Tensors) -> Callable[[], object]:
    import h5py

    with h5py.File(path, "w") as file:
        for name, bits in _bits(kv).items():
            file.create_dataset(name, data=bits, compression="gzip", shuffle=True)

    def read() -> object:
        with h5py.File(path) as file:
            return {name: data[...] for name, data in file.items()}

    return read


def _zarr(path: Path, kv: Tensors) -> Callable[[], object]:
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, bits in _bits(kv).items():
        group.create_array(name, data=bits)
    return lambda: {name: array[...] for name, array in zarr.open_group(path, mode="r").arrays()}


FORMATS: Final = {
    "torch.save": ("bf16", _torch),
    "safetensors": ("bf16", _safetensors),
    "npz": ("bf16 as uint16, deflate", _npz),
    "hdf5_gzip": ("bf16 as uint16, gzip 4 and shuffle, HDF5's own chunks", _hdf5),
    "zarr_default": ("bf16 as uint16, Zarr's own chunks and zstd", _zarr),
}
