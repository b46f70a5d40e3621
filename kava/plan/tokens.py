"""Tokens that a run reads: counted once they are tokenised, else estimated from the rows that are here."""

import sys
from dataclasses import dataclass
from pathlib import Path

from kava.config.data import FolderData
from kava.config.identity import model_path
from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.data.rows import load_rows
from kava.data.template import Template, Wording
from kava.data.tokens import encode_example
from kava.errors import UserError
from kava.files import read_json
from kava.hub import cached, repositories
from kava.models.load import load_tokenizer
from kava.tasks import task_of

# Rows that are tokenised for an estimate, evenly spaced: less than a second.
SAMPLE = 256


@dataclass(frozen=True)
class TokenCount:
    """Examples and tokens that the teacher reads, training and held-out ones; `known` once they are tokenised."""

    examples: int
    tokens: int
    known: bool


def count_tokens(jobs: Jobs) -> TokenCount:
    """Read the token set's manifest, or estimate from a sample of the rows, or from what was measured of the task.

    Raises
    ------
    UserError
        What `kava.data.rows.load_rows` says of data that is here, and `Wording` of a chat; data that is not here and of
        a kind of which nothing was measured.
    """
    config = jobs.config
    if jobs.tokenize.output.is_file():
        splits = [read_json(jobs.tokenize.output)["splits"][split] for split in ("train", "validation")]
        return TokenCount(sum(s["examples"] for s in splits), sum(s["tokens"] for s in splits), True)
    if here := _here(config):
        return _from_sample(jobs, here)
    data, lengths = config.data, task_of(config.data.kind).lengths
    wanted = None if data.train is None else data.train + data.validation
    examples = min((count for count in (wanted, lengths.train_rows) if count is not None), default=None)
    if examples is None or lengths.tokens is None:
        raise _not_here(config)
    return TokenCount(examples, round(examples * min(float(config.max_length), lengths.tokens)), False)


def test_rows(config: Config) -> int:
    """Test rows of a run; raises `UserError` where nobody knows how many there are."""
    if config.data.test is not None:
        return config.data.test
    if here := _here(config):
        return len(load_rows(here).splits["test"])
    if (known := task_of(config.data.kind).lengths.test_rows) is None:
        raise _not_here(config)
    return known


def _here(config: Config) -> FolderData | None:
    """Data of this machine, with its folder as path; None for what is to be downloaded, or generated."""
    if not isinstance(config.data, FolderData):
        return None
    folder = _folder(config, "data", config.data.path)
    return config.data.model_copy(update={"path": str(folder)}) if folder else None


def _not_here(config: Config) -> UserError:
    return UserError(
        f"the rows of {repositories(config)['data']} are not on this machine, so nobody knows how many tokens they "
        "have; get them with `kava fetch`"
    )


def _from_sample(jobs: Jobs, data: FolderData) -> TokenCount:
    """Estimate from every n-th row, without those that are too long, as `kava tokenize` drops them."""
    task, loaded = task_of(data.kind), load_rows(data)
    rows = loaded.splits["train"] + loaded.splits["validation"]
    sample = rows[:: -(-len(rows) // SAMPLE)]
    key = jobs.tokenize.spec.key
    teacher = jobs.config.teacher
    if _folder(jobs.config, "teacher", model_path(teacher.model)):
        tokenizer = load_tokenizer(teacher)
        tokenizer.model_max_length = sys.maxsize  # too long a row is left out below, and no reason for a warning
        wording = Wording(tokenizer, key.template, key.chat, loaded.conversations)
        text = wording.rows(sample, "train")
        lengths = [float(len(encode_example(task, tokenizer, wording.template, row)["input_ids"])) for row in text]
    else:
        per_token = task.lengths.characters_per_token
        lengths = [len(Template(key.template).fill(row)) / per_token for row in sample]
    kept = [length for length in lengths if length <= key.max_length]
    share = len(rows) / len(sample)
    return TokenCount(round(len(kept) * share), round(sum(kept) * share), False)


def _folder(config: Config, role: str, path: str) -> Path | None:
    """Where a model or data set lies on this machine; None where it is still to be downloaded."""
    repository = repositories(config)[role]
    return cached(repository) if repository else Path(path)
