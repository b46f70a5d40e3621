"""One codec measured: a real store is written, read back, and compared with the teacher's KV."""

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from kava.bench.fidelity import Fidelity, HeadFidelity, summary
from kava.bench.source import Source
from kava.config.kv import KvStore
from kava.kv import Geometry
from kava.store.admin.describe import array_sizes
from kava.store.admin.inventory import total_bytes
from kava.store.array_spec import TOKENS_PER_GROUP
from kava.store.codecs import Codec
from kava.store.contents import Contents
from kava.store.layout import STATISTICS, Packing, chunk_tokens
from kava.store.reader import StoreReader
from kava.store.shard import ENCODE_TOKENS
from kava.store.writer import StoreWriter

REPEATS: Final = 5
# More than the processor's caches hold, and seconds for the slowest codec.
TIMED_BYTES: Final = 32 << 20


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
    """Write a store of a codec, with settings as in the configuration, and measure its size, fidelity and speed.

    The folder is empty, and the caller's to delete.
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
    sizes = array_sizes(folder)
    sizes["records"] += total_bytes(folder) - sum(sizes.values())  # the manifest
    everything, held_out, bit_exact, read_seconds = _read_back(source, folder / "manifest.json")
    encode, decode = _speed(source, codec)
    kv_bytes = sum(size for name, size in sizes.items() if name in codec.arrays or name.startswith("parameters"))
    megabytes = source.raw_bytes / 1e6
    heads = everything.result()
    figures = {
        "codec": settings,
        "ratio": sum(sizes.values()) / source.raw_bytes,
        "bits_per_value": 8 * kv_bytes / (source.tokens * 2 * source.geometry.channels),
        **summary(heads),
        "bit_exact": bit_exact,
        "held_out": summary(held_out.result()),
        "encode_mb_s": encode,
        "decode_mb_s": decode,
        "write_mb_s": megabytes / (written - calibrated),
        "read_mb_s": megabytes / read_seconds,
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


def _read_back(source: Source, manifest: Path) -> tuple[Fidelity, Fidelity, bool, float]:
    """Fidelity of all tokens and of the held-out ones, whether all equal the teacher's bf16, and seconds of reading."""
    mean = source.mean()
    everything, held_out, bit_exact = Fidelity(mean), Fidelity(mean), True
    started = time.monotonic()
    reader = StoreReader(manifest)
    seconds = time.monotonic() - started
    for split in source.segments:
        for example, (first, end) in enumerate(pairwise(source.starts(split))):
            started = time.monotonic()
            stored = reader.read(split, example).kv
            seconds += time.monotonic() - started
            exact, _ = source.part(split, slice(first, end))
            bit_exact &= all(torch.equal(x.bfloat16(), y.bfloat16()) for x, y in zip(exact, stored, strict=True))
            everything.add(exact, stored)
            if split != STATISTICS:
                held_out.add(exact, stored)
    return everything, held_out, bit_exact, seconds


def _speed(source: Source, codec: Codec) -> tuple[float, float]:
    """MB of raw bf16 per second: encoding in the writer's blocks, decoding example by example; medians of warm runs."""
    per_token = 2 * source.geometry.channels * 2
    starts = source.starts(STATISTICS)
    most = max(1, TIMED_BYTES // per_token)
    examples = [(a, b) for a, b in pairwise(starts) if b <= most] or [(0, starts[1])]
    tokens = examples[-1][1]
    cuts = pairwise([*range(0, tokens, ENCODE_TOKENS), tokens])
    blocks = [source.part(STATISTICS, slice(a, b)) for a, b in cuts]
    infos = [source.part(STATISTICS, slice(a, b))[1] for a, b in examples]
    encoding, decoding = [], []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        encoded = [codec.encode(*block) for block in blocks]
        encoding.append(time.perf_counter() - started)
    rows = {name: torch.cat([block[name] for block in encoded]) for name in codec.arrays}
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for (first, last), info in zip(examples, infos, strict=True):
            own = {
                name: rows[name][first // spec.tokens_per_row : -(-last // spec.tokens_per_row)]
                for name, spec in codec.arrays.items()
            }
            codec.decode(own, first % TOKENS_PER_GROUP, info)
        decoding.append(time.perf_counter() - started)
    megabytes = tokens * per_token / 1e6
    return megabytes / median(encoding[1:]), megabytes / median(decoding[1:])  # the first of each warms up
