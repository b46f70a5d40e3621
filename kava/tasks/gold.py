"""Answers as lm-evaluation-harness reads them: one that is equal to the gold text has to count as right.

Where the harness's filters take something else from the gold text than the metric compares, no answer can be right.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

ANSWER_MARK = "####"
FLEXIBLE = "flexible-extract"
# Rows whose marks are compared in one call; the metric copies them into an array as wide as the longest.
AT_ONCE = 32
# Drawn as nothing: zero-width space and joiners, word joiner, the mark of byte order; and those of writing direction.
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f"
SIGNS = str.maketrans({"\u2212": "-", "\uff0d": "-", "\uff0b": "+"})
NUMBER = re.compile(r"\$?([-+]?)\$?(\d[\d.,]*|[.,]\d[\d.,]*)")


@cache
def harness_gsm8k() -> dict[str, Any]:
    """The harness's own definition of GSM8K, as installed: filters, metric, stop strings."""
    return yaml.safe_load((files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8"))


class Unmatched(NamedTuple):
    """A gold answer that not even itself is counted as: its row, the filter, and what that takes from the text."""

    row: int
    filter: str
    extracted: str


class Harness(NamedTuple):
    """Of the harness's own GSM8K: filters by name, whether texts are equal, and the strings that end an answer."""

    filters: dict[str, Any]
    right: Callable[[Sequence[str], Sequence[str]], float]
    stop: list[str]


def unmatched(answers: Sequence[str]) -> list[Unmatched]:
    """Gold answers that both of the harness's filters do not count as right when a model writes just that text.

    Parameters
    ----------
    answers
        Texts that end in `#### <number>`.

    Returns
    -------
    list
        In the order of rows, once for each row, with the first filter that fails. A text without any digit behind
        the mark fails, too.
    """
    harness = _harness()
    found: dict[int, Unmatched] = {}
    written = [_generated(answer, harness.stop) for answer in answers]
    for name, ensemble in harness.filters.items():
        extracted = _filtered(name, ensemble, written)
        for start in range(0, len(answers), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(answers)))
            if harness.right([extracted[row] for row in rows], [answers[row] for row in rows]) == 1:
                wrong = [row for row in rows if not _has_digits(extracted[row])]
            else:
                wrong = [row for row in rows if harness.right([extracted[row]], [answers[row]]) != 1]
            for row in wrong:
                found.setdefault(row, Unmatched(row, name, extracted[row]))
    return [found[row] for row in sorted(found)]


def is_right(answer: str, gold: str) -> bool:
    """Whether both of the harness's filters count an answer as the gold one."""
    harness = _harness()
    text = [_generated(answer, harness.stop)]
    return all(
        harness.right(_filtered(name, ensemble, text), [gold]) == 1 for name, ensemble in harness.filters.items()
    )


def marked(text: str, ended: bool) -> str | None:
    """A text that a model wrote as an answer that ends in `#### <number>`.

    Parameters
    ----------
    text
        In any form.
    ended
        Whether the model ended it, so that its last number is its result.

    Returns
    -------
    str or None
        The text up to its first `#### <number>`, with that line spelled as the filters read it; or a text without such
        a line and its last number on one. None where there is no number, or where it may be any one.
    """
    text = spelled(text) if ANSWER_MARK in text else text
    if (found := re.search(_strict_pattern(), text)) and _has_digits(found[1]):
        cut = not ended and found.end() == len(text)  # the number may have had more digits
        return None if cut else text[: found.end()].strip().rstrip(".,")
    (last,) = _filtered(FLEXIBLE, _harness().filters[FLEXIBLE], [text])
    if not ended or not _has_digits(last):
        return None
    return spelled(f"{text.strip()}\n{ANSWER_MARK} {last}").rstrip(".,")


def spelled(answer: str) -> str:
    """An answer with what stands behind its last mark as the filters read it, where the meaning is plain.

    White space around the number goes, of any kind, and one space is put before it; decimal digits of every script
    become those of ASCII, and a minus sign a hyphen; a plus sign and a dollar sign before the number go, since the
    number is the same. Anything else is left as it is.
    """
    before, mark, last = answer.rpartition(ANSWER_MARK)
    last = _strip(last).translate(SIGNS)
    last = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in last)
    if number := NUMBER.fullmatch(last):
        sign, digits = number.groups()
        last = ("-" if sign == "-" else "") + digits
    return f"{before}{mark} {last}"


def ending(answer: str) -> str:
    """The end of an answer, from its last mark on, short enough for a sentence."""
    start = answer.rfind(ANSWER_MARK)
    text = answer[start:] if start >= 0 else answer[-40:]
    return repr(text if len(text) <= 40 else text[:39] + "…")


@cache
def _harness() -> Harness:
    # Registers the metric and the filters.
    import lm_eval.api.metrics  # noqa: F401
    from lm_eval.api.registry import get_metric
    from lm_eval.filters import build_filter_ensemble

    task = harness_gsm8k()
    (metric,) = task["metric_list"]
    settings = {
        name: value for name, value in metric.items() if name not in ("metric", "aggregation", "higher_is_better")
    }
    compare = get_metric(metric["metric"])

    def right(predictions: Sequence[str], references: Sequence[str]) -> float:
        return float(compare(predictions=predictions, references=references, **settings)[metric["metric"]])

    filters = {}
    for ensemble in task["filter_list"]:
        steps = [
            (step["function"], {name: value for name, value in step.items() if name != "function"})
            for step in ensemble["filter"]
        ]
        filters[ensemble["name"]] = build_filter_ensemble(ensemble["name"], steps)
    return Harness(filters, right, task["generation_kwargs"]["until"])


def _filtered(name: str, ensemble: Any, texts: Sequence[str]) -> list[str]:
    from lm_eval.api.instance import Instance

    instances = [Instance("generate_until", {}, (), row) for row in range(len(texts))]
    for instance, text in zip(instances, texts, strict=True):
        instance.resps = [text]
    ensemble.apply(instances)
    return [instance.filtered_resps[name] for instance in instances]


def _strict_pattern() -> str:
    """Of the filter that wants the mark, `strict-match`; its group is the number."""
    pattern: str = harness_gsm8k()["filter_list"][0]["filter"][0]["regex_pattern"]
    return pattern


def _has_digits(extracted: str) -> bool:
    return any(map(str.isdecimal, extracted))


def _generated(answer: str, stop: Sequence[str]) -> str:
    """What a model can write of an answer: it ends where a stop string stands."""
    for end in stop:
        answer = answer.split(end)[0]
    return answer


def _strip(text: str) -> str:
    start, end = 0, len(text)
    while start < end and (text[start].isspace() or text[start] in INVISIBLE):
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] in INVISIBLE):
        end -= 1
    return text[start:end]
