"""The longest examples of a data set: whoever has met them has met the peak of a run."""

from kava.bench.workspace import Rows
from kava.config.schema import Config
from kava.data.prompt import prompt_ids
from kava.data.rows import load_rows
from kava.data.template import template_for
from kava.data.tokens import encode_example
from kava.errors import UserError
from kava.models.load import load_tokenizer
from kava.tasks import task_of


def longest_rows(config: Config, examples: int, held_out: int, questions: int) -> tuple[dict[str, Rows], int]:
    """The longest rows that `max_length` admits: so many examples, held-out ones and questions, or all there are.

    Returns
    -------
    tuple of dict and int
        Split → rows, and the tokens of the longest training example.

    Raises
    ------
    UserError
        No training example is short enough.
    """
    tokenizer, task = load_tokenizer(config.teacher), task_of(config.data.kind)
    template = template_for(tokenizer, config.template, config.chat)

    def lengths(rows: Rows) -> list[int]:
        return [len(encode_example(task, tokenizer, template, row)["input_ids"]) for row in rows]

    rows, chosen, longest = load_rows(config.data).splits, {}, {}
    for split, count in (("train", examples), ("validation", held_out)):
        admitted = [
            (n, row) for n, row in zip(lengths(rows[split]), rows[split], strict=True) if n <= config.max_length
        ]
        if not admitted:
            raise UserError(f"every {split} example is longer than max_length={config.max_length}; raise it")
        admitted.sort(key=lambda example: -example[0])
        chosen[split], longest[split] = [row for _, row in admitted[:count]], admitted[0][0]
    # A question counts without its answer, which the model has yet to find.
    prompts = [prompt_ids(tokenizer, template.prompt(row["question"])) for row in rows["test"]]
    by_length = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    chosen["test"] = [rows["test"][n] for n in by_length[:questions]]
    return chosen, longest["train"]
