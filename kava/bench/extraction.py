"""The token rate of extraction against that of the teacher's bare forward over the same batches."""

import shutil
from typing import Any

import torch

from kava.bench.workspace import in_turn
from kava.config.job import Job, Runtime
from kava.data.tokens import TokenSet
from kava.device import choose_device
from kava.kv import pad_ids
from kava.models.capture import geometry
from kava.models.load import load_model_config, load_teacher
from kava.models.placement import resident
from kava.store.admin.inventory import total_bytes
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
    writer: StoreWriter

    def empty_store() -> None:
        """Its codec is calibrated, and no shard is written."""
        nonlocal writer
        shutil.rmtree(folder, ignore_errors=True)
        contents = Contents(job.spec.key, geometry(model_config), model_config.hidden_size)
        writer = StoreWriter(folder, contents, segments, device)
        none = len(writer.shards) + 1  # of so many parts the last has no shard
        fill(writer, lambda _: Extractor(resident(teacher), contents, input_ids, segments), (none, none))

    def extract() -> None:
        fill(writer, lambda _: Extractor(resident(teacher), writer.contents, input_ids, segments))
        writer.seal()

    @torch.inference_mode()
    def forward(shards: int | None = None) -> None:
        for split, shard in writer.shards[:shards]:
            lengths = [len(ids) for ids in input_ids[split]]
            for batch in batches(writer.packings[split].members(shard), lengths, job.spec.key.batch_tokens):
                ids, mask = pad_ids([input_ids[split][example] for example in batch])
                teacher.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)

    empty_store()
    forward(1)  # the first one of a process is slow
    spent = in_turn({"extract": extract, "forward": forward}, rounds, device, empty_store)
    total = sum(len(ids) for of_split in input_ids.values() for ids in of_split)
    return {
        "tokens": total,
        "extract_tokens_per_second": total / min(spent["extract"]),
        "forward_tokens_per_second": total / min(spent["forward"]),
        "ratio": min(spent["forward"]) / min(spent["extract"]),
        "ratios": [bare / whole for whole, bare in zip(spent["extract"], spent["forward"], strict=True)],
        "store_ratio": total_bytes(folder) / (total * 4 * geometry(model_config).channels),
    }
