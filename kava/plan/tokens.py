"""Tokens that a run reads: counted once they are tokenised, else estimated from the rows that are here."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config.identity import model_path
from kava.config.jobs import Jobs
from kava.config.schema import Config, DemoData, Gsm8kData
from kava.data.rows import load_rows
from kava.data.template import Template, template_for
from kava.data.tokens import encode_example
from kava.files import read_json
from kava.hub import cached, repositories
from kava.models.load import load_tokenizer

# Measured with the default template, end token included: GSM8K's training split under Qwen2.5's tokenizer, 1,390,694
# tokens in 7,473 examples of 4,042,914 characters; the demo's under its own, 79,007 in 1,100.
GSM8K_EXAMPLES = 7473
TOKENS_PER_EXAMPLE = {"gsm8k": 1_390_694 / GSM8K_EXAMPLES, "demo": 79_007 / 1100}
CHARACTERS_PER_TOKEN = 4_042_914 / 1_390_694
# Rows that are tokenised for an estimate, evenly spaced: less than a second.
SAMPLE = 256


@dataclass(frozen=True)
class TokenCount:
    """Examples and tokens that the teacher reads, training and held-out ones; `known` once they are tokenised."""

    examples: int
    tokens: int
    known: bool


def count_tokens(plan: Jobs) -> TokenCount:
    """Read the token set's manifest, or estimate from a sample of the rows; where they are not here, from GSM8K's.

    Raises
    ------
    UserError
        What `kava.data.rows.load_rows` says of data that is here, and `template_for` of a chat.
    """
    config = plan.config
    if plan.tokenize.output.is_file():
        splits = [read_json(plan.tokenize.output)["splits"][split] for split in ("train", "validation")]
        return TokenCount(sum(s["examples"] for s in splits), sum(s["tokens"] for s in splits), True)
    data = config.data
    if isinstance(data, DemoData):
        return _of_known_length(data.train + data.validation, config)
    folder = _folder(config, "data", data.path)
    if folder is None:
        limit = GSM8K_EXAMPLES if data.train is None else data.train + data.validation
        return _of_known_length(min(GSM8K_EXAMPLES, limit), config)
    return _from_sample(plan, data.model_copy(update={"path": str(folder)}))


def _of_known_length(examples: int, config: Config) -> TokenCount:
    tokens = examples * min(float(config.max_length), TOKENS_PER_EXAMPLE[config.data.kind])
    return TokenCount(examples, round(tokens), False)


def _from_sample(plan: Jobs, data: Gsm8kData) -> TokenCount:
    """Estimate from every n-th row, without those that are too long, as `kava tokenize` drops them."""
    splits = load_rows(data).splits
    rows = splits["train"] + splits["validation"]
    sample = rows[:: -(-len(rows) // SAMPLE)]
    key: dict[str, Any] = plan.tokenize.spec.key.model_dump()
    teacher = plan.config.teacher
    if _folder(plan.config, "teacher", model_path(teacher.model)):
        tokenizer = load_tokenizer(teacher)
        tokenizer.model_max_length = sys.maxsize  # too long a row is left out below, and no reason for a warning
        template = template_for(tokenizer, key["template"], key.get("chat"))
        lengths = [float(len(encode_example(tokenizer, template, row)["input_ids"])) for row in sample]
    else:
        lengths = [len(Template(key["template"]).fill(row)) / CHARACTERS_PER_TOKEN for row in sample]
    kept = [length for length in lengths if length <= key["max_length"]]
    share = len(rows) / len(sample)
    return TokenCount(round(len(kept) * share), round(sum(kept) * share), False)


def _folder(config: Config, role: str, path: str) -> Path | None:
    """Where a model or data set lies on this machine; None where it is still to be downloaded."""
    repository = repositories(config)[role]
    return cached(repository) if repository else Path(path)
