"""Measure what a KV store costs and what it gives back: size, fidelity and speed of every codec.

    kava bench store
    kava bench store --model DIRECTORY --data DIRECTORY --tokens 100000 --output store.json
    kava bench store --synthetic 28,2,128 --codecs bf16,int8,int4

Reads the teacher once, writes a real store per codec into a temporary folder, reads it back through the reader that
training uses, and compares every head with the teacher's KV in float64. Beside the codecs stand other file formats,
and the rate-distortion bound of a Gaussian of the same covariance. The default is the demo's teacher and data.
"""

import argparse
import logging
from typing import Any

from kava.bench.setting import OUTPUT, count_of, show
from kava.commandline import option, require_one, run_command
from kava.errors import UserError
from kava.exits import log_to_stderr

log = logging.getLogger("kava")
# Seconds for a small model, and enough tokens for a transform to spread its parameters over.
TOKENS = 32768


def main(argv: list[str] | None = None) -> int:
    made_up = "made-up KV of L layers, H KV heads and head dim D, without a model"
    return run_command(
        "kava bench store", __doc__, argv, _bench,
        option("--model", default="kava:teacher", help="directory or hub id (default: the demo's teacher)"),
        option("--data", help="directory with GSM8K's train.jsonl and test.jsonl (default: the demo's)"),
        option("--quantization", choices=["nf4", "int8", "none"], default="none", help="default: %(default)s"),
        option("--dtype", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s"),
        count_of("tokens", TOKENS, "tokens of the data"),
        option("--codecs", metavar="NAME,…", help="some of the codecs (default: all)"),
        option("--synthetic", metavar="L,H,D", help=made_up),
        *OUTPUT,
    )  # fmt: skip


def _bench(arguments: argparse.Namespace) -> None:
    from kava.bench.run import measure, table
    from kava.config.benchmark import CODECS, LIKE_INT4

    log_to_stderr()
    names = arguments.codecs.split(",") if arguments.codecs else list(CODECS)
    unknown = [name for name in names if name not in CODECS]
    if unknown:
        raise UserError(f"--codecs {arguments.codecs}: no codec {unknown[0]!r}; choose from {', '.join(CODECS)}")
    if LIKE_INT4 in names and "int4" not in names:
        raise UserError(f"--codecs {arguments.codecs}: {LIKE_INT4} is tuned to int4; name int4 too")
    require_one(arguments, "tokens")
    source, setup = _synthetic(arguments) if arguments.synthetic else _teacher(arguments)
    codecs = {name: settings for name, settings in CODECS.items() if name in names}
    show(arguments, measure(source, codecs, setup, log.info), table)


def _synthetic(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    from kava.bench.source import synthetic
    from kava.kv import Geometry

    try:
        layers, heads, dim = (int(number) for number in arguments.synthetic.split(","))
        if min(layers, heads, dim) < 1:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--synthetic {arguments.synthetic!r}: expected layers, KV heads and head dim, such as 28,2,128"
        ) from None
    return synthetic(Geometry(layers, heads, dim), arguments.tokens), {"model": "none", "data": "random numbers"}


def _teacher(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    import numpy as np
    import torch
    from tqdm import tqdm

    from kava.bench.source import first_tokens, read_teacher
    from kava.config.data import DemoData, Gsm8kData
    from kava.config.identity import display_name
    from kava.config.models import Teacher
    from kava.config.schema import Config
    from kava.data.rows import load_rows
    from kava.data.template import Template
    from kava.data.tokens import encode_example
    from kava.models.capture import geometry
    from kava.models.load import load_model_config, load_teacher, load_tokenizer
    from kava.tasks import task_of

    teacher = Teacher(model=arguments.model, quantization=arguments.quantization, dtype=arguments.dtype)
    data = Gsm8kData(path=arguments.data) if arguments.data else DemoData(train=5000, validation=500, test=1)
    tokenizer, template = load_tokenizer(teacher), Template(data.template)
    task = task_of(data.kind)
    longest = Config.model_fields["max_length"].default
    splits = {split: rows for split, rows in load_rows(data).splits.items() if split != "test"}
    input_ids: dict[str, list[np.ndarray]] = {}
    segments: dict[str, list[np.ndarray]] = {}
    for split, rows in splits.items():
        encoded, counted = [], 0
        for row in rows:
            example = encode_example(task, tokenizer, template, row)
            if len(example["input_ids"]) <= longest:
                encoded.append(example)
                counted += len(example["input_ids"])
            if counted > arguments.tokens:
                break
        input_ids[split] = [np.array(example["input_ids"], np.int32) for example in encoded]
        segments[split] = [np.array(example["segments"], np.int8) for example in encoded]
    input_ids, segments = first_tokens(input_ids, segments, arguments.tokens)
    total = sum(len(ids) for of_split in input_ids.values() for ids in of_split)
    log.info("reading %d tokens with %s", total, display_name(arguments.model))
    with tqdm(total=total, unit="tok", desc="teacher", delay=1e-9) as bar:
        model = load_teacher(teacher, torch.device("cpu"))
        source = read_teacher(model, geometry(load_model_config(teacher)), input_ids, segments, on_tokens=bar.update)
    setup = {"quantization": teacher.quantization, "dtype": teacher.dtype, "model": display_name(arguments.model)}
    return source, {**setup, "data": display_name(arguments.data) if arguments.data else "the demo"}
