"""The test questions as an lm-evaluation-harness task: its own GSM8K filters and metric, our questions.

lm_eval run --model hf --model_args pretrained=STUDENT --tasks kava_gsm8k --include_path TASK_FOLDER
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kava.data.template import QUESTION, Template
from kava.files import write_atomic
from kava.prompt_format import PromptFormat

TASK = "kava_gsm8k"
# lm-eval loads this file beside the task, so that a token set can be moved and shared: no path is written into it.
LOADER = '''"""Load the questions that stand beside this file."""

import json
from pathlib import Path

from datasets import Dataset


def load(**_):
    lines = (Path(__file__).parent / "test.jsonl").read_text().strip("\\n").split("\\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
'''


def write_task(folder: Path, rows: list[dict[str, str]], template: Template) -> None:
    """Write `kava_gsm8k.yaml`, its loader and `test.jsonl` into a folder."""
    # The harness takes it for a Jinja template, in which braces of a chat template have to be quoted.
    prompt = template.prompt(QUESTION).replace("{", "{{ '{' }}").replace(QUESTION, "{{question}}")
    task = harness_gsm8k()
    for key in ("tag", "dataset_path", "dataset_name", "training_split", "fewshot_split"):
        task.pop(key, None)
    # The column itself: the harness would compile a template five times for every question.
    assert task["doc_to_target"] == "{{answer}}", f"the harness's GSM8K has another target: {task['doc_to_target']}"
    task["doc_to_target"] = "answer"
    task |= {"task": TASK, "doc_to_text": prompt, "num_fewshot": 0, "custom_dataset": "CUSTOM_DATASET"}
    text = yaml.safe_dump(task, sort_keys=False).replace("CUSTOM_DATASET", "!function questions.load")
    write_atomic(folder / f"{TASK}.yaml", text)
    write_atomic(folder / "questions.py", LOADER)
    write_atomic(folder / "test.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_task(folder: Path) -> PromptFormat:
    """The prompt and the stop strings of a folder that `write_task` wrote."""
    task = yaml.load((folder / f"{TASK}.yaml").read_text(encoding="utf-8"), _TaskLoader)
    prompt: str = task["doc_to_text"].replace("{{ '{' }}", "{").replace("{{question}}", QUESTION)
    escaped = prompt.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{question}")
    return PromptFormat(escaped, list(task["generation_kwargs"]["until"]))


def read_questions(folder: Path) -> list[str]:
    """The test questions of a folder that `write_task` wrote."""
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    return [json.loads(line)["question"] for line in lines]


class _TaskLoader(yaml.SafeLoader):
    """Reads the harness's `!function` as the text behind it, and runs nothing."""


_TaskLoader.add_constructor("!function", lambda _, node: node.value)


def harness_gsm8k() -> dict[str, Any]:
    """The harness's own definition of GSM8K, as installed: filters, metric, stop strings."""
    return yaml.safe_load((files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
