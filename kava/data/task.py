"""The test questions as an lm-evaluation-harness task: its own GSM8K filters and metric, our questions.

lm_eval run --model hf --model_args pretrained=STUDENT --tasks kava_gsm8k --include_path TASK_FOLDER
"""

import json
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from kava.data.prompt_format import PromptFormat
from kava.data.template import QUESTION, Template
from kava.files import write_atomic

TASK = "kava_gsm8k"
# `lm_eval run` loads this file beside the task, so that a token set can be moved and shared: it names no path.
LOADER = '''"""Load the questions that stand beside this file."""

import json
from pathlib import Path

from datasets import Dataset


def load(**_):
    lines = (Path(__file__).parent / "test.jsonl").read_text(encoding="utf-8").strip("\\n").split("\\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
'''


def write_task(folder: Path, rows: list[dict[str, str]], template: Template) -> None:
    """Write `kava_gsm8k.yaml`, its loader and `test.jsonl` into a folder."""
    task = harness_gsm8k()
    for key in ("tag", "dataset_path", "dataset_name", "training_split", "fewshot_split"):
        task.pop(key, None)
    # The column itself: the harness would compile a template five times for every question.
    assert task["doc_to_target"] == "{{answer}}", f"the harness's GSM8K has another target: {task['doc_to_target']}"
    task["doc_to_target"] = "answer"
    task |= {"task": TASK, "doc_to_text": as_jinja(template), "num_fewshot": 0, "custom_dataset": "CUSTOM_DATASET"}
    text = yaml.safe_dump(task, sort_keys=False)
    text = text.replace("\ncustom_dataset: CUSTOM_DATASET\n", "\ncustom_dataset: !function questions.load\n")
    write_atomic(folder / f"{TASK}.yaml", text)
    write_atomic(folder / "questions.py", LOADER)
    write_atomic(folder / "test.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_task(folder: Path) -> dict[str, Any]:
    """The task of a folder as a configuration of the harness, whose questions are read here.

    The loaders of older token sets read the questions in the encoding of the locale.
    """

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda _loader, _node: partial(_questions, folder))
    return yaml.load((folder / f"{TASK}.yaml").read_text(encoding="utf-8"), Loader)


def _questions(folder: Path, **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    lines = (folder / "test.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def as_jinja(template: Template) -> str:
    """The prompt in the harness's template language, which renders just what `Template.prompt` gives."""
    before, after = template.prompt(QUESTION).split(QUESTION)
    # As the prompt's end is trimmed, and the question is that end.
    question = "question" if after else f"question.rstrip({template.trimmed!r})"
    return f"{_quoted(before)}{{{{{question}}}}}{_quoted(after)}"


def _quoted(text: str) -> str:
    """Text with what Jinja would take for its own, or for another line break."""
    return text.replace("{", "{{ '{' }}").replace("\r", "{{ '\\r' }}")


def read_prompt(folder: Path) -> PromptFormat:
    """The prompt and the stop strings of a folder that `write_task` wrote."""
    task = yaml.load((folder / f"{TASK}.yaml").read_text(encoding="utf-8"), _TaskLoader)
    prompt = Environment(keep_trailing_newline=True).from_string(task["doc_to_text"]).render(question=QUESTION)
    escaped = prompt.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{question}")
    return PromptFormat(escaped, list(task["generation_kwargs"]["until"]))


def read_questions(folder: Path) -> list[str]:
    """The test questions of a folder that `write_task` wrote."""
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    return [json.loads(line)["question"] for line in lines]


def read_prompts(folder: Path) -> list[str]:
    """The prompts of the test questions of a folder that `write_task` wrote."""
    asked = read_prompt(folder)
    return [asked.fill(question) for question in read_questions(folder)]


class _TaskLoader(yaml.SafeLoader):
    """Reads the harness's `!function` as nothing, and runs nothing."""


_TaskLoader.add_constructor("!function", lambda _loader, _node: None)


def harness_gsm8k() -> dict[str, Any]:
    """The harness's own definition of GSM8K, as installed: filters, metric, stop strings."""
    return yaml.safe_load((files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8"))
