"""Measure extraction with the teacher's weights streamed from the disk, against a teacher in memory.

    kava bench extract
    kava bench extract --preset smollm2 --tokens 16384
    kava bench extract --preset qwen2.5-8gb --random-weights --tokenizer DIR --placement streamed

Runs the real stage on the first rows of the data, in a temporary folder, each placement in a process of its own. Says
tokens per second (loading included), memory at its peak (on a GPU that of torch's allocator, on a CPU that which no
file backs), how much was read of the disk and how long it was waited for. Made-up models are written a few tensors at
a time, so that one can be measured that this machine could not hold.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kava.bench.setting import bench_a_run, count_of, show_machine
from kava.commandline import option
from kava.config.schema import Config
from kava.text import table as columns

TOKENS: Final = 16384
PLACEMENTS: Final = ("resident", "streamed")


def main(argv: list[str] | None = None) -> int:
    options = (
        count_of("tokens", TOKENS, "tokens to read, at least"),
        option("--placement", choices=(*PLACEMENTS, "both"), default="both", help="which (default: %(default)s)"),
    )
    return bench_a_run("extract", __doc__, argv, _measure, table, *options)


def _measure(config: Config, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from kava.bench.stage_process import run_measured
    from kava.bench.workspace import BenchJobs, quiet
    from kava.config.job import Runtime
    from kava.data import tokenize
    from kava.files import read_json

    small = _few(config, arguments.tokens, folder)
    rows = []
    for placement in PLACEMENTS if arguments.placement == "both" else (arguments.placement,):
        own = small.model_copy(update={"teacher": small.teacher.model_copy(update={"placement": placement})})
        jobs, runtime = BenchJobs(own, folder / placement), Runtime.of(own)
        with quiet():
            tokenize.run(jobs.tokenize, runtime)
        row = {"placement": placement} | run_measured(jobs.extract, runtime, folder, timed=True)
        if row["error"] is None:
            store = jobs.extract.output.parent
            manifest, cost = read_json(jobs.extract.output), read_json(store / "cost.json")
            row |= {"tokens": manifest["tokens"], "tokens_per_second": manifest["tokens"] / cost["seconds"]}
            row |= {name: value for name, value in cost.items() if name != "peak_memory_mib"}
            row["digest"] = manifest["sha256"]  # the digests of all files are in it
        rows.append(row)
    return {"placements": rows, "same_bytes": _same([row.get("digest") for row in rows])}


def _few(config: Config, tokens: int, folder: Path) -> Config:
    """The configuration on so many tokens of its first training rows, and one row of the other splits."""
    from kava.bench.workspace import on_rows
    from kava.data.rows import load_rows
    from kava.data.template import template_for
    from kava.data.tokens import encode_example
    from kava.models.load import load_tokenizer
    from kava.tasks import task_of

    tokenizer, task = load_tokenizer(config.teacher), task_of(config.data.kind)
    template = template_for(tokenizer, config.template, config.chat)
    splits, chosen, count = load_rows(config.data).splits, [], 0
    for row in splits["train"]:
        length = len(encode_example(task, tokenizer, template, row)["input_ids"])
        if length <= config.max_length:
            chosen.append(row)
            count += length
        if count >= tokens:
            break
    rows = {"train": chosen, "validation": splits["validation"][:1], "test": splits["test"][:1]}
    return on_rows(config, rows, folder / "data")


def _same(digests: list[str | None]) -> bool | None:
    """Whether all stores have the same bytes; None if fewer than two were made."""
    return len(set(digests)) == 1 if len(digests) > 1 and None not in digests else None


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [["teacher", "tokens", "tokens/s", "peak GiB", "read GB", "waited s", "of s"]]
    for row in figures["placements"]:
        peak = row.get("reserved_mib") or row.get("anonymous_mib")
        cells = [row["placement"], *([""] * 6)]
        if row["error"] is None:
            read, waited = row.get("weights_read_bytes"), row.get("weights_waited_seconds")
            cells[1:] = [
                f"{row['tokens']:,}",
                f"{row['tokens_per_second']:.1f}",
                f"{peak / 1024:.2f}" if peak else "",
                "" if read is None else f"{read / 1e9:.1f}",
                "" if waited is None else f"{waited:.1f}",
                f"{row['seconds']:.1f}",
            ]
        lines.append(cells)
    notes = [f"{row['placement']} did not finish: {row['error']}" for row in figures["placements"] if row["error"]]
    if (same := figures["same_bytes"]) is not None:
        notes.append("Both stores have the same bytes." if same else "The two stores DIFFER.")
    return "\n".join([columns(lines, left=1), "", *notes, show_machine(figures["setup"]) + "."])
