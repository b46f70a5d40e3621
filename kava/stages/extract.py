"""Read the data once with the teacher and store its KV.

    kava extract --preset demo

Loads the teacher alone, skips its head, and writes <cache_dir>/teacher_kv/<name>-<key>/: shards first, manifest.json
last. A run that was killed goes on at the first unfinished shard; if all are finished, no model is loaded.
"""

import argparse
import sys

from kava.config.jobs import Job, Plan, Runtime
from kava.stages.common import cost_record, log, progress_interval, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Plan, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.extract

    return stage_main("extract", __doc__, argv, select, lambda: run)


def run(job: Job, runtime: Runtime) -> None:
    from tqdm import tqdm

    from kava.cache.capture import geometry
    from kava.cache.extract import extract_shard
    from kava.cache.writer import StoreWriter
    from kava.data.tokens import TokenSet
    from kava.models import choose_device, load_model_config, load_teacher, peak_memory_mib

    key, source = job.spec["key"], runtime.teacher
    device = choose_device(runtime.device)
    tokens = TokenSet(job.inputs["tokens"])
    lengths = {split: tokens.lengths(split) for split in ("train", "validation")}
    writer = StoreWriter(job.output.parent, key, lengths, geometry(load_model_config(source)))
    writer.open()
    pending = writer.pending()
    shards = sum(packing.shards for packing in writer.packings.values())
    log.info("store %s: %d of %d shards to extract", job.output.parent, len(pending), shards)
    if pending:
        with cost_record(job.output.parent / "cost.json", lambda: peak_memory_mib(device)):
            teacher = load_teacher(source, device)
            total = sum(
                sum(lengths[split][example] for example in writer.packings[split].members(shard))
                for split, shard in pending
            )
            with tqdm(total=total, unit="tok", desc="extract", mininterval=progress_interval()) as bar:
                for split, shard in pending:
                    keys, values = extract_shard(
                        teacher, tokens.input_ids[split], writer.packings[split], shard,
                        key["batch_tokens"], key["keys"], bar.update,
                    )  # fmt: skip
                    writer.write_shard(split, shard, keys, values)
    manifest = writer.seal()
    log.info(
        "sealed: %d tokens, %.1f MB, %.3f of raw bf16", manifest["tokens"], manifest["bytes"] / 1e6, manifest["ratio"]
    )


if __name__ == "__main__":
    sys.exit(main())
