"""Measure what each codec makes of the run's own teacher KV, for the report's chart of size against fidelity.

    python -m kava.stages.bench_store --preset demo

For a run with `report.codecs: true`. Reads a few of the tokens with the teacher and writes
<cache_dir>/bench/<name>-<key>/store.json. `kava bench store` measures any model and more tokens.
"""

import argparse
import sys
from typing import Any

from kava.config.jobs import Job, Plan, Runtime
from kava.stages.common import log, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Plan, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.bench

    return stage_main("bench_store", __doc__, argv, select, lambda _: run, beside_others="wait")


def run(job: Job, runtime: Runtime) -> None:
    from kava.bench.run import measure, table
    from kava.bench.source import first_tokens, read_teacher
    from kava.cache.capture import geometry
    from kava.config.benchmark import too_wide
    from kava.config.identity import display_name
    from kava.data.tokens import TokenSet
    from kava.device import use_device
    from kava.files import write_json
    from kava.models import load_model_config, load_teacher

    if job.output.is_file():
        return  # made by the process that was waited for
    key: dict[str, Any] = job.spec["key"]
    tokens = TokenSet(job.inputs["tokens"])
    shape = geometry(load_model_config(runtime.teacher))
    of_token = 2 * shape.channels * 4
    wanted = min(key["measured_tokens"], key["measured_bytes"] // of_token)
    input_ids, segments = first_tokens(tokens.input_ids, tokens.segments, wanted)
    teacher = load_teacher(runtime.teacher, use_device(runtime))
    source = read_teacher(teacher, shape, input_ids, segments, key["read"])
    del teacher
    setup = {**runtime.teacher, "model": display_name(runtime.teacher["model"]), "data": runtime.data["kind"]}
    left_out = too_wide(key["codecs"], shape.channels, key["rotated_channels"])
    codecs = {name: settings for name, settings in key["codecs"].items() if name not in left_out}
    figures = measure(source, codecs, setup, log.info)
    figures["skipped"] |= left_out
    write_json(job.output, figures)
    log.info("%s", table(figures))


if __name__ == "__main__":
    sys.exit(main())
