"""Speed of a codec by itself, in MB of raw bf16 per second."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Final

import torch

from kava.bench.source import Source
from kava.store.array_spec import TOKENS_PER_GROUP
from kava.store.codecs import Codec
from kava.store.layout import STATISTICS
from kava.store.shard import ENCODE_TOKENS

REPEATS: Final = 5
# More than the processor's caches hold, and seconds for the slowest codec.
TIMED_BYTES: Final = 32 << 20


def codec_speed(source: Source, codec: Codec) -> tuple[float, float]:
    """Encoding in the writer's blocks, and decoding example by example, medians of several warm runs."""
    per_token = 2 * source.geometry.channels * 2
    starts = source.starts(STATISTICS)
    most = max(1, TIMED_BYTES // per_token)
    examples = [(a, b) for a, b in pairwise(starts) if b <= most] or [(0, starts[1])]
    tokens = examples[-1][1]
    blocks = [
        source.part(STATISTICS, slice(a, min(a + ENCODE_TOKENS, tokens))) for a in range(0, tokens, ENCODE_TOKENS)
    ]
    encoded: list[dict[str, torch.Tensor]] = []

    def encode() -> None:
        encoded[:] = [codec.encode(*block) for block in blocks]

    encode_seconds = _timed(encode)
    rows = {name: torch.cat([block[name] for block in encoded]) for name in codec.arrays}
    infos = [source.part(STATISTICS, slice(a, b))[1] for a, b in examples]

    def decode() -> None:
        for (first, last), info in zip(examples, infos, strict=True):
            own = {
                name: rows[name][first // spec.tokens_per_row : -(-last // spec.tokens_per_row)]
                for name, spec in codec.arrays.items()
            }
            codec.decode(own, first % TOKENS_PER_GROUP, info)

    return tokens * per_token / 1e6 / encode_seconds, tokens * per_token / 1e6 / _timed(decode)


def _timed(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])  # the first warms up
