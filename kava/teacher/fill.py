"""Fill a store: calibrate, extract shard after shard while the last one is written, seal."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

from kava.locks import Claim, claim, holder
from kava.store.layout import STATISTICS
from kava.store.shard import ShardContent, require_finite
from kava.store.writer import Shard, StoreWriter
from kava.teacher.extractor import Extractor

log = logging.getLogger("kava")

WAIT_SECONDS: Final = 0.5


def fill(writer: StoreWriter, load: Callable[[list[Shard]], Extractor], part: tuple[int, int] = (1, 1)) -> int:
    """Write what a store lacks; returns the number of shards written here.

    Parameters
    ----------
    writer
        The store.
    load
        Loads the teacher, given the shards that it will read; not called if nothing is lacking.
    part
        `(k, n)`: only every n-th shard, from the k-th on (counted from 1), for n jobs beside each other.
    """
    extractor: Extractor | None = None
    if writer.open():
        with writer.exclusive():
            if not writer.calibrated():
                extractor = load(_own(writer, part))
                log.info("calibrating codec %s on %d tokens", writer.codec.kind, writer.codec.calibration_tokens)
                sample = extractor.calibration(writer.packings[STATISTICS])
                require_finite(sample.kv)
                writer.codec.calibrate(sample)
                writer.write_parameters()
    pending = set(writer.pending())
    todo = [shard for shard in _own(writer, part) if shard in pending]
    log.info("store %s: %d of %d shards to extract", writer.folder, len(todo), len(writer.shards))
    if not todo:
        return 0
    writer.check_room(todo)
    extractor = extractor or load(todo)
    written, together = 0, max(1, extractor.placed.wave_tokens // extractor.contents.settings.shard_tokens)
    # Shards are encoded and written while the teacher reads the next ones.
    with ThreadPoolExecutor(max_workers=1) as background:
        last: Future[None] | None = None
        for claimed in _claims(writer, todo, together):
            with _released(claimed) as until_written:
                contents = extractor.shards(list(claimed), writer.packings, writer.axes)
                if last:
                    last.result()
                until_written.pop_all()
            last = background.submit(_write, writer, claimed, contents)
            written += len(claimed)
        if last:
            last.result()
    log.info("%d shards written by this process", written)
    return written


def _claims(writer: StoreWriter, shards: list[Shard], together: int) -> Iterator[dict[Shard, Claim]]:
    """Unfinished shards, some together, each locked for this process, which releases it; ends when all are finished.

    A shard that another process has is left to it, and looked at again until it is done or its process is dead. None
    is held while others are waited for.
    """
    waiting, announced = shards, False
    while waiting:
        taken: list[Shard] = []
        claimed: dict[Shard, Claim] = {}
        for split, shard in waiting:
            path = writer.lock(split, shard)
            held = claim(path)
            if held is None:
                taken.append((split, shard))
                if not announced:
                    log.info("%s works on shard %s-%d; taking others, then waiting", holder(path), split, shard)
                    announced = True
            elif writer.is_complete(split, shard):
                held.release()
            else:
                claimed[split, shard] = held
            if len(claimed) == together:
                yield claimed
                claimed = {}
        if claimed:
            yield claimed
        if len(taken) == len(waiting):
            time.sleep(WAIT_SECONDS)
        waiting = taken


def _write(writer: StoreWriter, claimed: dict[Shard, Claim], contents: list[ShardContent]) -> None:
    with _released(claimed):
        for shard, content in zip(claimed, contents, strict=True):
            writer.write_shard(*shard, content)


def _released(claimed: dict[Shard, Claim]) -> ExitStack:
    """A context at whose end the claims are let go."""
    stack = ExitStack()
    for held in claimed.values():
        stack.callback(held.release)
    return stack


def _own(writer: StoreWriter, part: tuple[int, int]) -> list[Shard]:
    return writer.shards[part[0] - 1 :: part[1]]
