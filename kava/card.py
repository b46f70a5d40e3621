"""The model card of an exported student: its README.md, which the Hugging Face hub shows, numbers included.

Distillation writes it without accuracy, evaluation with it. Nothing in it is measured by a clock or names a place, so
that the card of a resumed run is that of an uninterrupted one, wherever the folder lies.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache

from kava.config.identity import display_name, layers_named, model_path, on_hub
from kava.config.schema import Evaluation
from kava.data.prompt_format import PromptFormat
from kava.errors import UserError
from kava.files import write_atomic
from kava.grades import grade
from kava.tasks import scored, task_of
from kava.tasks.base import Task
from kava.tasks.metric import Metric

FILE = "README.md"
UNKNOWN = "unknown"
LICENCE_FIELDS = ("license", "license_name", "license_link")
EXAMPLE = "A box holds 6 eggs. How many eggs are in 3 boxes?"


def write_card(
    folder: Path,
    manifest: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write a student's card, or replace it.

    Parameters
    ----------
    folder
        Of the student.
    manifest
        Of its distillation.
    sources
        `teacher`, `student` (before distillation) and `data`, as configured.
    evaluation
        `n`, and a number for each metric that was measured; None before there are any.

    Raises
    ------
    UserError
        The card cannot be written.
    """
    try:
        write_atomic(folder / FILE, card_text(manifest, sources, evaluation))
    except OSError as error:
        raise UserError(
            f"the model card {folder / FILE} cannot be written ({error.strerror}); make the student's folder "
            "writable, or evaluate a copy of it"
        ) from None


def card_text(
    manifest: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The card: a header for the hub (https://huggingface.co/docs/hub/model-cards), then what a person reads.

    Parameters are those of `write_card`; equal ones give equal text.
    """
    spec = manifest["spec"]
    base, licence = display_name(sources["student"]["model"]), base_licence(sources["student"])
    data, task = _data(sources["data"]), task_of(sources["data"]["kind"])
    header = ModelCardData(
        base_model=base if on_hub(sources["student"]["model"]) else None,
        datasets=data["type"] if on_hub(sources["data"].get("path", "")) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["kava", "distillation", "kv-cache"],
        model_name=f"{base.split('/')[-1].removeprefix('kava:')}-{spec['name']}-seed-{spec['seed']}",
        eval_results=_eval_results(evaluation, data, task),
        license=licence["license"],
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    body = f"""
# {base}, distilled with KAVA (arm `{spec["name"]}`, seed {spec["seed"]})

A causal language model that was trained by KAVA, which distils a teacher's KV cache into a small student.

## {"Accuracy" if task.harness else "Evaluation"}

{_scores(evaluation, data["name"], task)}

## Alignment

{_alignment(manifest["alignment"])}

## Training

{_training(manifest, sources, data["name"], licence["license"])}

## Prompt

{_prompt(manifest.get("prompt"), evaluation)}

## Arm

```yaml
{yaml.safe_dump(dict(spec["arm"]))}```
"""
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n{body}"))


def _prompt(given: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> str:
    """The exact prompt, with an example and what answers it as the evaluation did."""
    if given is None:
        return "The manifest of this student does not say on which prompt it was trained: distil it again."
    prompt = PromptFormat(given["prompt"], given["stop"])
    longest = evaluation["spec"]["key"]["evaluation"]["max_new_tokens"] if evaluation else Evaluation().max_new_tokens
    shown = prompt.fill(EXAMPLE).replace("\n", "\n    ")
    filled = f"{prompt.prompt!r}.format(question=question)" + (".rstrip()" if prompt.trims else "")
    stops = f" or before one of {', '.join(f'`{text}`' for text in prompt.stop)}" if prompt.stop else ""
    stop_line = f"\nstop = {prompt.stop!r}" if prompt.stop else ""
    stop_option = ", stop_strings=stop, tokenizer=tokenizer" if prompt.stop else ""
    cut = "\nfor text in stop:\n    answer = answer.split(text)[0]" if prompt.stop else ""
    return f"""\
The student was trained on one prompt, and knows no other and no chat beside it. With an example:

    {shown}

As a Python format string it is `{prompt.prompt!r}`; nothing follows its last character, no space and no line break.
Answers are greedy and end at the end token{stops}. In this
folder, `kava generate . "{EXAMPLE}"` does that, or:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

student = "."  # this folder, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(student)
tokenizer = AutoTokenizer.from_pretrained(student)

question = {EXAMPLE!r}
prompt = {filled}{stop_line}

ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
if ids[0, -1] == tokenizer.eos_token_id:  # some tokenizers end every text
    ids = ids[:, :-1]
output = model.generate(ids, do_sample=False, max_new_tokens={longest}{stop_option})
answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True){cut}
print(answer)
```"""


def base_licence(source: Mapping[str, Any]) -> dict[str, str]:
    """Licence fields for the hub, from the card of the base model; `{"license": "unknown"}` where none tells.

    A card on the hub is read from the hub's cache, and never fetched: `hf download MODEL README.md` puts it there.
    """
    path = model_path(source["model"])
    if on_hub(source["model"]):
        cached = try_to_load_from_cache(path, FILE, revision=source["revision"])
        found = cached if isinstance(cached, str) else None
    else:  # of a GGUF file, that of its conversion
        found = str(Path(path) / FILE)
    if found is None or not Path(found).is_file():
        return {"license": UNKNOWN}
    try:
        given = metadata_load(found) or {}
    except (ValueError, yaml.YAMLError):  # a broken card of somebody else's tells nothing
        given = {}
    return {"license": UNKNOWN} | {name: given[name] for name in LICENCE_FIELDS if given.get(name)}


def _data(source: Mapping[str, Any]) -> dict[str, Any]:
    """Name, hub type and revision of a data set."""
    if name := task_of(source["kind"]).generated_as:
        return {"name": name, "type": f"kava-{source['kind']}", "revision": None}
    name = display_name(source["path"])
    return {"name": name, "type": name, "revision": source["revision"] if on_hub(source["path"]) else None}


def _eval_results(evaluation: Mapping[str, Any] | None, data: Mapping[str, Any], task: Task) -> list[EvalResult] | None:
    if evaluation is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=data["type"],
            dataset_name=data["name"],
            dataset_split="test",
            dataset_args={"questions": evaluation["n"]},
            dataset_revision=data["revision"],
            metric_type="exact_match" if metric.proportion else metric.name,
            metric_name=metric.label,
            metric_value=evaluation[metric.name],
        )
        for metric in _measured(evaluation, task)
    ]


def _measured(evaluation: Mapping[str, Any], task: Task) -> list[Metric]:
    """Metrics of which an evaluation has a number: marks if answers were generated, agreement if it is known."""
    return [metric for metric in scored(task, generate=True) if evaluation.get(metric.name) is not None]


def _scores(evaluation: Mapping[str, Any] | None, data: str, task: Task) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    n, measured = f"{evaluation['n']:,}", _measured(evaluation, task)
    marks = [metric for metric in measured if metric.proportion]
    rows = [f"| {_label(metric)} | {evaluation[metric.name]:.4f} |" for metric in measured if metric not in marks]
    likelihood = _table(("", f"mean over {n} test rows"), rows) + (
        f"\n\nHow likely the answers of {data} are to this model, each token given all before it"
        f"{'' if marks else '; nothing was generated'}. A lower NLL is better, and only numbers of one tokenizer "
        "compare; agreement is the share of tokens at which this model's likeliest token is the teacher's."
    )
    if not marks or task.harness is None:
        return likelihood
    # Imports statsmodels, which takes seconds that distillation need not wait.
    from kava.report.statistics.intervals import wilson

    marked = []
    for metric in marks:
        low, high = wilson(evaluation[metric.name], evaluation["n"])
        marked.append(f"| {metric.label} | {evaluation[metric.name]:.4f} | {low:.4f} to {high:.4f} |")
    table = _table(("", "share right", "95% interval"), marked) + (
        f"\n\n{n} test questions of {data}, answered greedily and 0-shot, scored by the {task.harness.title} filters "
        "of lm-evaluation-harness. The interval is Wilson's, over questions: it says nothing about students trained "
        "anew."
    )
    return f"{table}\n\n{likelihood}" if rows else table


def _label(metric: Metric) -> str:
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def _alignment(alignment: Mapping[str, Any] | None) -> str:
    if not alignment:
        return "Trained without a projector, so there is none to measure."
    rows = [f"| {name} | {_number(value)} |" for name, value in sorted(alignment.items()) if name != "per_head"]
    return _table(("on held-out examples", ""), rows) + (
        "\n\nProjected teacher KV against this student's, which says nothing of accuracy; grade of the centred cosine: "
        f"{grade(alignment['cos_sim_centered']) or 'none'}."
    )


def _training(manifest: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]], data: str, licence: str) -> str:
    spec, teacher = manifest["spec"], sources["teacher"]
    facts = {
        "base model": _named(sources["student"]),
        "licence of the base model": licence,
        "teacher": f"{_named(teacher)}, {teacher['quantization']}" if "store" in manifest["inputs"] else "none",
        "data": data,
        "trained weights": f"low-rank adapters, rank {spec['lora']['rank']}, merged" if spec.get("lora") else "all",
        "optimizer steps": f"{manifest['optimizer_steps']:,}",
        "training tokens": f"{manifest['train_tokens']:,}",
        "learning rate": f"{spec['distill']['student_lr']:g}",
        "projector parameters": _count(manifest["projector_parameters"]),
        "dtype of the weights": spec["export_dtype"],
    }
    return _table(("", ""), [f"| {name} | {value} |" for name, value in facts.items()])


def _named(source: Mapping[str, Any]) -> str:
    name = display_name(source["model"])
    at = f" at {source['revision']}" if on_hub(source["model"]) else ""
    return name + at + layers_named(source.get("keep_layers"))


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
