"""The test questions of a token set: as a task of lm-evaluation-harness where answers are generated.

It has the harness's own filters and metric, and our questions:

lm_eval run --model hf --model_args pretrained=STUDENT --tasks kava_gsm8k --include_path TASK_FOLDER
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from kava.data.prompt_format import PromptFormat
from kava.data.template import QUESTION, Template
from kava.files import read_json, write_atomic, write_json
from kava.tasks.base import Harness, Row

# Of questions that no harness asks, the prompt and stop strings.
PROMPT = "prompt.json"
# `lm_eval run` loads this file beside the task, so that a token set can be moved and shared: it names no path.
LOADER = '''"""Load the questions that stand beside this file."""

import json
from pathlib import Path

from datasets import Dataset


def load(**_):
    lines = (Path(__file__).parent / "test.jsonl").read_text(encoding="utf-8").strip("\\n").split("\\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
'''


def write_task(folder: Path, rows: list[Row], template: Template, harness: Harness) -> None:
    """Write the harness's YAML file, its loader and `test.jsonl` into a folder."""
    task = dict(harness.definition)
    for key in ("tag", "dataset_path", "dataset_name", "training_split", "fewshot_split"):
        task.pop(key, None)
    # The column itself: the harness would compile a template five times for every question.
    assert task["doc_to_target"] == "{{answer}}", f"the harness's task has another target: {task['doc_to_target']}"
    task["doc_to_target"] = "answer"
    task |= {
        "task": harness.name,
        "doc_to_text": as_jinja(template),
        "num_fewshot": 0,
        "custom_dataset": "CUSTOM_DATASET",
    }
    text = yaml.safe_dump(task, sort_keys=False)
    text = text.replace("\ncustom_dataset: CUSTOM_DATASET\n", "\ncustom_dataset: !function questions.load\n")
    write_atomic(folder / f"{harness.name}.yaml", text)
    write_atomic(folder / "questions.py", LOADER)
    _write_rows(folder, rows)


def write_questions(folder: Path, rows: list[Row], asked: Template) -> None:
    """Write `test.jsonl`, and the prompt of a question that is none of them, into a folder."""
    write_json(folder / PROMPT, PromptFormat(_escaped(asked.prompt(QUESTION)), []).to_dict())
    _write_rows(folder, rows)


def copy_task(folder: Path, rows: list[Row], target: Path) -> None:
    """The task of a folder with other questions, in another folder."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    _write_rows(target, rows)


def _write_rows(folder: Path, rows: list[Row]) -> None:
    write_atomic(folder / "test.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_task(folder: Path) -> dict[str, Any]:
    """The task of a folder as a configuration of the harness, whose questions are read here.

    The loaders of older token sets read the questions in the encoding of the locale.
    """

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda _loader, _node: partial(_questions, folder))
    return yaml.load(_task_file(folder).read_text(encoding="utf-8"), Loader)


def _task_file(folder: Path) -> Path:
    (file,) = folder.glob("*.yaml")
    return file


def _questions(folder: Path, **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(read_rows(folder))}


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
    """The prompt and the stop strings of a folder that `write_task` or `write_questions` wrote."""
    if (folder / PROMPT).is_file():
        return PromptFormat(**read_json(folder / PROMPT))
    task = yaml.load(_task_file(folder).read_text(encoding="utf-8"), _TaskLoader)
    prompt = Environment(keep_trailing_newline=True).from_string(task["doc_to_text"]).render(question=QUESTION)
    return PromptFormat(_escaped(prompt), list(task["generation_kwargs"]["until"]))


def _escaped(prompt: str) -> str:
    """The prompt of the stand-in `QUESTION` as a format string."""
    return prompt.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{question}")


def read_rows(folder: Path) -> list[Row]:
    """The test rows of a folder that `write_task` or `write_questions` wrote."""
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    return [json.loads(line) for line in lines]


def read_prompts(folder: Path) -> list[str]:
    """The prompts of the test questions of a folder that `write_task` wrote."""
    asked = read_prompt(folder)
    return [asked.fill(row["question"]) for row in read_rows(folder)]


class _TaskLoader(yaml.SafeLoader):
    """Reads the harness's `!function` as nothing, and runs nothing."""


_TaskLoader.add_constructor("!function", lambda _loader, _node: None)
