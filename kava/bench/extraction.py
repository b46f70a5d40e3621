"""The token rate of extraction against that of the teacher's bare forward over the same batches."""

import shutil
import time
from collections.abc import Callable
from typing import Any

import torch

from kava.config.jobs import Job, Runtime
from kava.data.tokens import TokenSet
from kava.device import choose_device
from kava.kv import pad_ids
from kava.models.capture import geometry
from kava.models.load import load_model_config, load_teacher
from kava.store.contents import Contents
from kava.store.writer import StoreWriter
from kava.teacher.extractor import Extractor, batches
from kava.teacher.fill import fill


def measure_extraction(job: Job, runtime: Runtime, rounds: int) -> dict[str, Any]:
    """Extract the store of a job `rounds` times, in turn with the bare forward; the last one stays.

    The bare forward runs the same batches with the same padding, without head and cache, and keeps nothing. A codec's
    calibration, once per store, is in neither.

    Returns
    -------
    dict
        `tokens`; `extract_tokens_per_second` (until the manifest is written), `forward_tokens_per_second`, each in its
        best round; `ratio` of the first to the second; `ratios`, one per round; `store_ratio`, size over raw bf16.
    """
    device = choose_device(runtime.device)
    tokens = TokenSet(job.inputs["tokens"])
    model_config = load_model_config(runtime.teacher)
    splits = ("train", "validation")
    input_ids = {split: tokens.input_ids[split] for split in splits}
    segments = {split: tokens.segments[split] for split in splits}
    folder = job.output.parent
    teacher = load_teacher(runtime.teacher, device)

    def empty_store() -> StoreWriter:
        """Its codec is calibrated, and no shard is written."""
        shutil.rmtree(folder, ignore_errors=True)
        contents = Contents(job.spec.key, geometry(model_config), model_config.hidden_size)
        writer = StoreWriter(folder, contents, segments, device)
        none = len(writer.shards) + 1  # of so many parts the last has no shard
        fill(writer, lambda _: Extractor(teacher, contents, input_ids, segments), (none, none))
        return writer

    def extract(writer: StoreWriter) -> None:
        fill(writer, lambda _: Extractor(teacher, writer.contents, input_ids, segments))
        writer.seal()

    @torch.inference_mode()
    def forward(writer: StoreWriter, shards: int | None = None) -> None:
        for split, shard in writer.shards[:shards]:
            lengths = [len(ids) for ids in input_ids[split]]
            for batch in batches(writer.packings[split].members(shard), lengths, job.spec.key.batch_tokens):
                ids, mask = pad_ids([input_ids[split][example] for example in batch])
                teacher.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)

    def seconds(work: Callable[[StoreWriter], None], writer: StoreWriter) -> float:
        started = time.monotonic()
        work(writer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - started

    ways = [("extract", extract), ("forward", forward)]
    spent: dict[str, list[float]] = {"extract": [], "forward": []}
    for number in range(rounds):
        writer = empty_store()
        if number == 0:
            forward(writer, 1)  # the first forward of a process is slow
        for name, work in ways if number % 2 == 0 else reversed(ways):
            spent[name].append(seconds(work, writer))
    total = sum(len(ids) for of_split in input_ids.values() for ids in of_split)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    ratios = [bare / whole for whole, bare in zip(spent["extract"], spent["forward"], strict=True)]
    return {
        "tokens": total,
        "extract_tokens_per_second": total / min(spent["extract"]),
        "forward_tokens_per_second": total / min(spent["forward"]),
        "ratio": min(spent["forward"]) / min(spent["extract"]),
        "ratios": ratios,
        "store_ratio": size / (total * 4 * geometry(model_config).channels),
    }
