"""Disk that a run takes: the teacher's store and the checkpoints."""

import shutil
from dataclasses import dataclass
from typing import Any

from kava.config.jobs import Jobs
from kava.config.kv import TransformCodec
from kava.files import nearest_folder, read_json
from kava.models.capture import geometry
from kava.plan.geometry import read_geometry
from kava.plan.tokens import TokenCount
from kava.store.contents import Contents
from kava.tasks import task_of

# What `transform` took of raw bf16 at a cosine of 0.99, and not at others: 0.019 in the demo, 0.051 with a tiny Llama.
TRANSFORM_RATIO = 0.06


@dataclass(frozen=True)
class Disk:
    """Bytes on disk."""

    store: int  # the teacher's KV, before entropy coding; its real size if it is sealed already
    store_is_there: bool
    checkpoints: int  # of the run that keeps most, with the one that is being written; they go when the run ends
    models: int  # students, at all steps that are kept, and projectors that all runs leave
    free: int  # where the store will lie

    @property
    def to_write(self) -> int:
        """Bytes of all that is not there yet."""
        return (0 if self.store_is_there else self.store) + self.checkpoints + self.models


def store_bytes(jobs: Jobs, count: TokenCount) -> int:
    """Bytes of the store before entropy coding, which takes a few per cent more off it; an upper bound for budgets."""
    config = jobs.config
    teacher = read_geometry(config.teacher)
    shape = geometry(teacher)
    contents = Contents(config.kv, shape, teacher.hidden_size)
    tokens = min(count.tokens, contents.selector.rows(count.tokens // max(1, count.examples)) * count.examples)
    longest = task_of(config.data.kind).lengths.longest_answer
    if "reasoning" in config.kv.signals.topk_segments:
        longest = None
    answers = count.tokens if longest is None else longest * count.examples
    rows = {"token": tokens, "answer": answers, "example": count.examples}
    if contents.codec.calibration_tokens:
        arrays = {name: spec for name, spec in contents.arrays.items() if name.startswith("signals/")}
        codec = config.kv.codec
        target = codec.target_ratio if isinstance(codec, TransformCodec) else None
        coded = TRANSFORM_RATIO if target is None else target
        fixed = coded * 2 * 2 * shape.channels * tokens
    else:
        arrays, fixed = contents.arrays, 0.0
    return round(fixed + sum(spec.bits_per_token * rows[spec.axis] / 8 for spec in arrays.values()))


def disk(jobs: Jobs, count: TokenCount, checkpoints: dict[str, int], models: int) -> Disk:
    """What a run takes, given the bytes of the largest checkpoint of each stage and of the models that are left."""
    settings: dict[str, Any] = {"pretrain": jobs.config.pretrain.as_phase(), "distill": jobs.config.distill}
    # One more than are kept is there while it is written.
    held = [(settings[stage].keep_checkpoints + 1) * size for stage, size in checkpoints.items()]
    sealed = jobs.extract.output
    store = read_json(sealed)["bytes"] if sealed.is_file() else store_bytes(jobs, count)
    free = shutil.disk_usage(nearest_folder(jobs.cache)).free
    return Disk(store, sealed.is_file(), max(held, default=0), models, free)
