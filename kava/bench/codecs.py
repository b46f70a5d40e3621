"""One codec measured: a real store is written, read back, and compared with the teacher's KV."""

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kava.bench.fidelity import Fidelity, HeadFidelity, summary
from kava.bench.source import Source
from kava.bench.speed import codec_speed
from kava.config.kv import KvStore
from kava.kv import Geometry
from kava.store.contents import Contents
from kava.store.layout import STATISTICS, Packing, chunk_tokens
from kava.store.reader import StoreReader
from kava.store.writer import StoreWriter


@dataclass(frozen=True)
class Measured:
    """Figures of a codec as they are reported, and the fidelity of every head."""

    figures: dict[str, Any]
    heads: HeadFidelity

    @property
    def cos(self) -> float:
        """Raw cosine, mean over K and V."""
        return float(self.heads.cos.mean())


def measure_codec(source: Source, settings: dict[str, Any], folder: Path) -> Measured:
    """Write a store of the codec into an empty folder, and measure its size, fidelity and speed.

    Parameters
    ----------
    source
        What is stored.
    settings
        The codec, as in the configuration.
    folder
        Where to; its content is the caller's to delete.
    """
    contents = Contents(store_key(settings), source.geometry, source.geometry.channels)
    writer = StoreWriter(folder, contents, source.segments)
    codec = contents.codec
    started = time.monotonic()
    if writer.open():
        with writer.exclusive():
            codec.calibrate(source.calibration(codec.calibration_tokens))
            writer.write_parameters()
    calibrated = time.monotonic()
    for split, shard in writer.pending():
        writer.write_shard(split, shard, source.shard(split, shard, writer.packings[split]))
    manifest = writer.seal()
    written = time.monotonic()
    sizes = _sizes(folder)
    back = _read_back(source, folder / "manifest.json")
    heads = back.everything.result()
    encode, decode = codec_speed(source, codec)
    values = source.tokens * 2 * source.geometry.channels
    kv_bytes = sum(size for name, size in sizes.items() if name in codec.arrays or name.startswith("parameters"))
    megabytes = source.raw_bytes / 1e6
    figures = {
        "codec": settings,
        "ratio": sum(sizes.values()) / source.raw_bytes,
        "bits_per_value": 8 * kv_bytes / values,
        **summary(heads),
        "bit_exact": back.bit_exact,
        "held_out": summary(back.held_out.result()),
        "encode_mb_s": encode,
        "decode_mb_s": decode,
        "write_mb_s": megabytes / (written - calibrated),
        "read_mb_s": megabytes / back.seconds,
        "calibration_seconds": calibrated - started,
        "read_amplification": read_amplification(source.geometry, writer.packings[STATISTICS]),
        "bytes": sizes,
        "shards": len(manifest["shards"]),
    }
    return Measured(figures, heads)


def read_amplification(geometry: Geometry, packing: Packing) -> float:
    """Bytes of the chunks that hold the examples over the bytes of their tokens, before compression.

    Every array along the token axis has its chunks at the same tokens, so that it is the same for each codec.
    """
    chunk = chunk_tokens(geometry, packing.tokens.per_shard)
    start, length = packing.tokens.start, packing.tokens.length
    touched = ((start + length - 1) // chunk - start // chunk + 1) * chunk
    return float(touched.sum() / length.sum())


def store_key(settings: dict[str, Any]) -> KvStore:
    """Settings of a store of a codec, as the configuration would make them."""
    return KvStore.model_validate({"codec": settings})


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes on disk of each array (splits together), of the parameters, and of what describes them."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        parts = file.relative_to(folder).parts
        if parts[0] != "store.zarr":
            name = "manifest and records"
        elif file.name == "zarr.json":
            name = "zarr metadata"
        elif parts[1] == "parameters":
            name = "/".join(parts[1 : parts.index("c")])
        else:
            name = "/".join(parts[2 : parts.index("c")])
        sizes[name] += file.stat().st_size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


class _ReadBack(NamedTuple):
    """Fidelity of all tokens and of the held-out ones, whether all equal the teacher's bf16, and seconds of reading."""

    everything: Fidelity
    held_out: Fidelity
    bit_exact: bool
    seconds: float


def _read_back(source: Source, manifest: Path) -> _ReadBack:
    mean = source.mean()
    everything, held_out, bit_exact = Fidelity(mean), Fidelity(mean), True
    started = time.monotonic()
    reader = StoreReader(manifest)
    seconds = time.monotonic() - started
    for split in source.segments:
        starts = source.starts(split)
        for example in range(len(starts) - 1):
            started = time.monotonic()
            stored = reader.read(split, example).kv
            seconds += time.monotonic() - started
            exact, _ = source.part(split, slice(*starts[example : example + 2]))
            bit_exact = bit_exact and all(
                torch.equal(x.bfloat16(), y.bfloat16()) for x, y in zip(exact, stored, strict=True)
            )
            everything.add(exact, stored)
            if split != STATISTICS:
                held_out.add(exact, stored)
    return _ReadBack(everything, held_out, bit_exact, seconds)
