"""The prompt that the harness renders is the one that was trained, whatever template and question hold."""

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from zoo.data import GSM8K, rows

from kava.config import load_config
from kava.data.task import write_task
from kava.data.template import Template
from kava.errors import UserError

TEMPLATES = {
    "default": "Question: {question}\nAnswer: {answer}",
    "braces": "{{system}} {{{{ x }}}} {question} {{% if %}} {{# note #}} {{answer}}: {answer}",
    "braces beside the fields": "{{{question}}}{{{answer}",
    "a statement": "{{% raw %}}{question}{{% endraw %}} {answer}",
    "percent and hash": "%% {question} ## #}} %}} }}}} {answer}",
    "carriage returns": "Question: {question}\r\nAnswer:\r{answer}",
    "the question last": "{question}{answer}",
    "the question and a space": "Q {question} {answer}",
    "the question and a line": "{question}\n{answer}",
    "quotes": "'{question}' \"\\n\\{question_}\"".replace("{question_}", "") + " {answer}",
    "other scripts": "Aufgabe \u2014 \u554f\u984c: {question}\u2028\u00a0A\U0001f600: {answer}",
    "yaml": "- !function x: &a *b | > {question} # no: yes\n---\n...\n{answer}",
    "a word of ours": "custom_dataset: CUSTOM_DATASET\n{question} CUSTOM_DATASET\n{answer}",
    "leading space": "\n\n {question}\t\n {answer}",
}
QUESTIONS = (
    "How many?", "{{ 7 * 7 }}", "{% if x %}", "{# note #}", "{question}", "{answer}", "{", "}}", "{0}", "%s %(a)s",
    "ends in a space ", "ends in lines\n\n", " starts", "two\nlines\r\nthree\r", "\\n \\{", "{{question}}",
    "<|endoftext|>", "'\"", "a\u2028b\u2028", "\U0001f600", "#### 5", "12",
)  # fmt: skip


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=TEMPLATES)
def test_the_harness_asks_what_was_trained(text: str, tmp_path: Path) -> None:
    template = Template(load_config(None, {"preset": "demo", "template": text}).template)
    asked = [rows(1)[0] | {"question": question} for question in QUESTIONS]
    write_task(tmp_path, asked, template, GSM8K.harness)
    (task,) = TaskManager(include_path=str(tmp_path), include_defaults=False).load(GSM8K.harness.name)["tasks"].values()
    task.build_all_requests(limit=None, rank=0, world_size=1)
    prompts = {instance.doc["question"]: instance.args[0] for instance in task.instances}
    for row in asked:
        prompt = template.prompt(row["question"])
        assert prompts[row["question"]] == prompt
        # The segment of the prompt, as `encode_example` cuts it.
        before_the_answer = template.fill(row).removesuffix(row["answer"])
        assert before_the_answer.rstrip(template.trimmed) == prompt


@pytest.mark.parametrize(
    "text",
    [
        "{question!r}\n{answer}", "{question!s} {answer}", "{question!a} {answer}", "{question:>80}\n{answer}",
        "{question:} {answer}", "{question:.5} {answer}", "{question:{answer}} {answer}", "{question.upper} {answer}",
        "{question[0]} {answer}", "{question} {answer!r}", "{question} {answer:5}", "{} {answer}", "{0} {answer}",
        "{ question } {answer}", "{Question} {answer}", "{question} {system} {answer}", "{question}{question}{answer}",
        "{question} {answer} {answer}", "{{question}} {answer}", "{question} {{answer}}", "{question} {answer}}",
        "{question} {{answer}", "{question {answer}", "question} {answer}", "{question} { {answer}", "{question}",
        "{answer}", "{answer} {question}", "{question} {answer} ", "", "{",
    ],
)  # fmt: skip
def test_a_template_with_anything_but_plain_fields_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"configuration: .*template .*(; write|must contain)"):
        load_config(None, {"preset": "demo", "template": text})
