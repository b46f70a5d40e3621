"""Extract the teacher's KV into a store, shard by shard, and seal it."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from kava.config.job import Job, Runtime
from kava.config.specs import ExtractSpec
from kava.data.fit import embedding_rows, no_tokens, require_fit, require_more_tokens
from kava.data.positions import check_positions
from kava.data.tokens import TokenSet
from kava.device import peak_memory_mib, use_device
from kava.errors import Interrupted, UserError
from kava.faults import not_writable
from kava.files import write_json
from kava.locks import PRESENCE, present
from kava.models.capture import geometry
from kava.models.load import check_model, load_model_config, load_tokenizer
from kava.models.placement import Placed, place
from kava.running import add_cost, progress_interval
from kava.store.contents import Contents
from kava.store.integrity import is_intact
from kava.store.writer import Shard, StoreWriter
from kava.teacher.extractor import Extractor
from kava.teacher.fill import fill

log = logging.getLogger("kava")


def unchecked(_job: Job[ExtractSpec], runtime: Runtime) -> Runtime:
    """Refuse nothing, and leave the teacher's placement as it is configured."""
    return runtime


def run(
    job: Job[ExtractSpec],
    runtime: Runtime,
    part: str | None = None,
    before_loading: Callable[[Job[ExtractSpec], Runtime], Runtime] = unchecked,
) -> None:
    """Write the shards of a store that are lacking, and seal it.

    Parameters
    ----------
    job, runtime
        Of stage `extract`.
    part
        `k/n`: every n-th shard from the k-th on, without sealing.
    before_loading
        Called before the teacher is loaded, which it may refuse, or place.
    """
    own = _parse_part(part) if part else (1, 1)
    marker = job.output if job.output.name != "manifest.json" else None  # Snakemake's, for a part
    folder = marker.parents[1] if marker else job.output.parent
    device = use_device(runtime, own[0] if part else None)
    tokens = TokenSet(job.inputs["tokens"])
    model_config = load_model_config(runtime.teacher)
    require_fit("teacher", runtime.teacher.model, model_config, tokens.reach)
    top = job.spec.key.signals.topk_logits
    left_out = _no_tokens(load_tokenizer(runtime.teacher), model_config, top) if top else None
    contents = Contents(job.spec.key, geometry(model_config), model_config.hidden_size)
    splits = ("train", "validation")
    segments = {split: tokens.segments[split] for split in splits}
    writer = StoreWriter(folder, contents, segments, device)

    with (
        present(folder / PRESENCE),
        tqdm(unit="tok", desc="extract", mininterval=progress_interval(), delay=1e-9) as bar,
    ):
        placed: Placed | None = None

        def load(shards: list[Shard]) -> Any:
            source = before_loading(job, runtime).teacher
            check_positions(job, runtime)
            check_model(runtime.student)  # or hours would be spent on a store that no student can read
            examples = [(s, example) for s, shard in shards for example in writer.packings[s].members(shard)]
            bar.total = sum(len(segments[split][example]) for split, example in examples)
            input_ids = {split: tokens.input_ids[split] for split in splits}
            nonlocal placed
            placed = place(source, device, head=top is not None)
            return Extractor(placed, contents, input_ids, segments, bar.update, left_out)

        if not part and is_intact(folder):
            log.info("%s is sealed, and every shard is as it was written", folder)
            return
        if fault := not_writable(folder):
            raise UserError(fault)
        started = time.monotonic()
        try:
            written = fill(writer, load, own)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; finished shards are kept: run again to go on with the others") from None
        if written:
            with writer.exclusive():
                spent, cost = time.monotonic() - started, placed.cost() if placed else {}
                add_cost(folder / "cost.json", spent, peak_memory_mib(device), **cost)
            if cost:
                log.info(
                    "read %.1f GB of weights, and waited for them in %.0f of %.0f s",
                    cost["weights_read_bytes"] / 1e9, cost["weights_waited_seconds"], spent,
                )  # fmt: skip
        manifest = None if part else writer.seal()
    if manifest is None:
        if marker:
            write_json(marker, {"stage": "extract", "part": part})
        return
    log.info(
        "sealed: %d tokens, %.1f MB, %.3f of raw bf16", manifest["tokens"], manifest["bytes"] / 1e6, manifest["ratio"]
    )


def _no_tokens(tokenizer: Any, model_config: Any, top: int) -> Any:
    """Rows of the teacher's head that top-k logits leave out; None if there are none."""
    require_more_tokens(tokenizer, top)
    rows = embedding_rows(model_config)
    left_out = no_tokens(tokenizer, rows) if rows is not None else None
    if left_out is not None:
        log.info(
            "the teacher's head has %d rows that are no tokens of its tokenizer, of %d: they are left out of top-k "
            "logits, whose probabilities are those among the tokens",
            int(left_out.sum()), rows,
        )  # fmt: skip
    return left_out


def _parse_part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--part {text!r}: expected k/n with 1 <= k <= n, such as 2/4")
    return part, parts
