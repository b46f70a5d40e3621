"""Measure each codec on the run's own teacher KV, for the report."""

import logging

from kava.bench.run import measure, table
from kava.bench.source import first_tokens, read_teacher
from kava.config.benchmark import too_wide
from kava.config.identity import display_name
from kava.config.job import Job, Runtime
from kava.config.specs import BenchSpec
from kava.data.tokens import TokenSet
from kava.device import use_device
from kava.files import write_json
from kava.models.capture import geometry
from kava.models.load import load_model_config, load_teacher

log = logging.getLogger("kava")


def run(job: Job[BenchSpec], runtime: Runtime) -> None:
    if job.output.is_file():
        return  # made by the process that was waited for
    key = job.spec.key
    tokens = TokenSet(job.inputs["tokens"])
    shape = geometry(load_model_config(runtime.teacher))
    of_token = 2 * shape.channels * 4
    wanted = min(key.measured_tokens, key.measured_bytes // of_token)
    input_ids, segments = first_tokens(tokens.input_ids, tokens.segments, wanted)
    teacher = load_teacher(runtime.teacher, use_device(runtime))
    source = read_teacher(teacher, shape, input_ids, segments, key.read.model_dump())
    del teacher
    setup = {**runtime.teacher.model_dump(), "model": display_name(runtime.teacher.model), "data": runtime.data.kind}
    left_out = too_wide(key.codecs, shape.channels, key.rotated_channels)
    codecs = {name: settings.model_dump() for name, settings in key.codecs.items() if name not in left_out}
    figures = measure(source, codecs, setup, log.info)
    figures["skipped"] |= left_out
    write_json(job.output, figures)
    log.info("%s", table(figures))
