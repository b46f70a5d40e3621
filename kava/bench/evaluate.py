"""Measure what scoring costs: questions per second of the evaluate stage against plain `model.generate`.

    kava bench evaluate
    kava bench evaluate --preset qwen2.5-8gb --questions 64
    kava bench evaluate --preset qwen2.5-8gb --random-weights --tokenizer DIR --set data.path=DIR

The base student answers the first test questions in turn each way: through lm-evaluation-harness as the
stage does (requests, stop strings, filters, marks), and by tokenising the same prompts, generating in the same
batches of like length, and decoding.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.bench.setting import bench_a_run, count_of, show_machine
from kava.config.schema import Config
from kava.text import table as columns

log = logging.getLogger("kava")
QUESTIONS, ROUNDS = 250, 3


def main(argv: list[str] | None = None) -> int:
    questions = count_of("questions", QUESTIONS, "test questions at most")
    rounds = count_of("rounds", ROUNDS, "runs of each way, in turn")
    return bench_a_run("evaluate", __doc__, argv, _measure, table, questions, rounds)


def _measure(config: Config, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from kava.bench.workspace import in_turn, quiet
    from kava.data.positions import check_prompts
    from kava.data.rows import load_rows
    from kava.data.task import write_task
    from kava.data.template import template_for
    from kava.device import choose_device
    from kava.evaluation.harness import harness_results
    from kava.models.load import load_for_evaluation, load_tokenizer
    from kava.tasks import task_of

    rows = load_rows(config.data).splits["test"][: arguments.questions]
    template = template_for(load_tokenizer(config.teacher), config.template, config.chat)
    harness = task_of(config.data.kind).harness
    assert harness is not None, "data whose answers are not generated is refused before"
    write_task(folder / "task", rows, template, harness)
    source, settings = config.student, config.evaluation
    device = choose_device(config.device)
    tokenizer = load_tokenizer(source)
    prompts = [template.prompt(row["question"]) for row in rows]
    check_prompts(tokenizer, prompts, {source.model: source}, settings.max_new_tokens)
    model = load_for_evaluation(source, device)

    ways = {
        "harness": lambda: harness_results(model, tokenizer, folder / "task", settings),
        "plain": lambda: generate(model, tokenizer, prompts, settings.batch_size, settings.max_new_tokens),
    }
    log.info("answering %d questions %d times each way", len(rows), arguments.rounds)
    with quiet():
        generate(model, tokenizer, prompts[:1], settings.batch_size, 2)  # the first call of a process is slow
        spent = in_turn(ways, arguments.rounds, device)
    return {
        "questions": len(rows),
        "rounds": arguments.rounds,
        **settings.model_dump(),
        **{f"{name}_questions_per_second": len(rows) / min(seconds) for name, seconds in spent.items()},
        "ratio": min(spent["harness"]) / min(spent["plain"]),
        "ratios": [whole / bare for whole, bare in zip(spent["harness"], spent["plain"], strict=True)],
    }


def generate(model: Any, tokenizer: Any, prompts: list[str], batch_size: int, max_new_tokens: int) -> list[str]:
    """Greedy answers by plain `model.generate`, longest prompts first, until the end token."""
    import torch

    from kava.data.prompt import prompt_ids
    from kava.evaluation.harness import prompt_batch

    longest_first = sorted(range(len(prompts)), key=lambda number: -len(prompt_ids(tokenizer, prompts[number])))
    answers = [""] * len(prompts)
    for start in range(0, len(prompts), batch_size):
        batch = longest_first[start : start + batch_size]
        asked, mask = (x.to(model.device) for x in prompt_batch(tokenizer, [prompts[number] for number in batch]))
        with torch.inference_mode():
            ids = model.generate(
                input_ids=asked,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(ids[:, asked.shape[1] :], skip_special_tokens=True)
        for number, text in zip(batch, texts, strict=True):
            answers[number] = text
    return answers


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    low, high = min(figures["ratios"]), max(figures["ratios"])
    lines = [
        ("evaluation", "questions/s", "time, ratio", "between"),
        ("model.generate", f"{figures['plain_questions_per_second']:.1f}", "1", ""),
        ("the stage", f"{figures['harness_questions_per_second']:.1f}", f"{figures['ratio']:.2f}",
         f"{low:.2f}–{high:.2f}"),
    ]  # fmt: skip
    return "\n".join(
        [
            columns(lines, left=1),
            "",
            f"{figures['questions']} questions, {figures['batch_size']} at once, at most {figures['max_new_tokens']} "
            f"tokens each; best of {figures['rounds']} rounds, ratios of the single rounds under `between`.",
            show_machine(figures["setup"]) + ".",
        ]
    )
