"""Have a trained student answer a question, or one question per line of standard input.

    kava generate results/demo/flat/seed-42/student "Ann has 3 apples and buys 2 more. How many has she?"
    kava generate results/demo/flat/seed-42/student --json < questions.txt

The question alone is given: the prompt around it is the one that the student was trained on, which stands in its
config.json. Greedy, with the same stop strings and, unless --max-new-tokens says otherwise, at most as many tokens as
in its evaluation, so that a test question gets the answer that evaluation/samples.jsonl has. Blank lines are skipped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from kava.commandline import option, run_command
from kava.config.models import ModelSettings
from kava.config.schema import Evaluation
from kava.data.prompt_format import PromptFormat
from kava.errors import UserError
from kava.files import read_json


def main(argv: list[str] | None = None) -> int:
    longest = "longest answer in tokens (default: that of the evaluation)"
    return run_command(
        "kava generate", __doc__, argv, _generate,
        option("student", type=Path, metavar="STUDENT", help="folder of a trained student, with config.json"),
        option("question", nargs="?", metavar="QUESTION", help="default: those of standard input, one a line"),
        option("--max-new-tokens", type=int, metavar="N", help=longest),
        option("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s"),
        option("--json", action="store_true", help="print a JSON object per question: question, answer"),
    )  # fmt: skip


def _generate(arguments: argparse.Namespace) -> None:
    given = arguments.max_new_tokens
    if given is not None and given < 1:
        raise UserError(f"--max-new-tokens {given} leaves no answer; give 1 or more")
    prompt = PromptFormat.of_student(arguments.student)
    questions = _questions(arguments.question)
    first = next(questions, None)
    if first is None:
        raise UserError("standard input holds no question; write one on each line, or give one behind the folder")
    reply = _replying(arguments, prompt, given or _longest_answer(arguments.student))
    for question in chain([first], questions):
        answer = reply(question)
        line = (
            json.dumps({"question": question, "answer": answer}, ensure_ascii=False)
            if arguments.json
            else answer.strip()
        )
        print(line, flush=True)


def _questions(argument: str | None) -> Iterator[str]:
    """The question of the command line, or those of standard input as they come."""
    if argument is not None:
        if not argument.strip():
            raise UserError("the question is empty; write it behind the folder, in quotes")
        yield _text(argument.encode("utf-8", "surrogateescape"), "the question")
        return
    if sys.stdin.isatty():
        print("one question a line; end with Ctrl-D", file=sys.stderr)
    for number, line in enumerate(sys.stdin.buffer, start=1):
        text = _text(line, f"line {number} of standard input").rstrip("\r\n")
        if text.strip():
            yield text


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 ({error}); write it in that encoding") from None


def _longest_answer(student: Path) -> int:
    """Tokens of the longest answer in the student's evaluation; the default before there was one."""
    path = student / "generation_config.json"
    own = read_json(path).get("max_new_tokens") if path.is_file() else None  # a copy may be without that file
    if own is not None and (type(own) is not int or own < 1):
        raise UserError(f"{path} has the max_new_tokens {own!r}, and 1 or more is allowed; give --max-new-tokens")
    return own or Evaluation().max_new_tokens


def _replying(arguments: argparse.Namespace, prompt: PromptFormat, max_new_tokens: int) -> Callable[[str], str]:
    """Question → answer. The model is loaded for the first question that fits."""
    from kava.data.fit import positions
    from kava.data.prompt import prompt_ids
    from kava.device import choose_device
    from kava.evaluation.harness import answer, answering
    from kava.models.load import load_for_evaluation, load_model_config, load_tokenizer

    source = ModelSettings(model=str(arguments.student))
    tokenizer, limit = load_tokenizer(source), positions(load_model_config(source))
    loaded: list[Any] = []

    def reply(question: str) -> str:
        filled = prompt.fill(question)
        tokens = len(prompt_ids(tokenizer, filled))
        if limit is not None and tokens + max_new_tokens > limit:
            fix = f"give --max-new-tokens {limit - tokens} at most" if tokens < limit else "ask a shorter question"
            raise UserError(
                f"the prompt of {question[:40]!r} has {tokens:,} tokens and its answer may have {max_new_tokens:,}, "
                f"but the student has {limit:,} positions; {fix}"
            )
        if not loaded:
            loaded.append(answering(load_for_evaluation(source, choose_device(arguments.device)), tokenizer, 1))
        return answer(loaded[0], filled, prompt.stop, max_new_tokens)

    return reply
