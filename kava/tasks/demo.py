"""The demo's word problems: seeded, in GSM8K's format, with splits that share no number combination.

Whoever changes the rows changes `DemoData.generator` in kava/config/data.py, too.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from kava.config.data import DemoData
from kava.tasks.base import Lengths, Row, Rows
from kava.tasks.gsm8k import Gsm8k

# Percent of the number combinations that fall to each split.
SPLITS = {"train": 70, "validation": 10, "test": 20}

NUMBERS = range(2, 21)  # from 2, so that every noun is a plural
PEOPLE = {
    "Tom": "He",
    "Ben": "He",
    "Omar": "He",
    "Luca": "He",
    "Anna": "She",
    "Mia": "She",
    "Zoe": "She",
    "Ines": "She",
}
THINGS = ("apples", "books", "coins", "pencils", "shells", "stamps", "stickers", "marbles")


@dataclass(frozen=True)
class Step:
    """One sentence of the solution; `{calculation}` is replaced by the annotated `left operator right`."""

    sentence: str
    left: str
    operator: str
    right: str

    def value(self, values: dict[str, int]) -> int:
        left, right = values[self.left], values[self.right]
        return {"+": left + right, "-": left - right, "*": left * right}[self.operator]


@dataclass(frozen=True)
class Template:
    """A kind of problem: its question, which names its numbers a, b and c, and the steps that solve it.

    The value of the latest step is called `x`, and the constant two is called `two`.
    """

    question: str
    steps: tuple[Step, ...]

    @property
    def letters(self) -> list[str]:
        return [letter for letter in "abc" if "{" + letter + "}" in self.question]

    @property
    def wordings(self) -> int:
        """How many questions there are with the same numbers."""
        friends = len(PEOPLE) - 1 if "{friend}" in self.question else 1
        return len(PEOPLE) * friends * len(THINGS)

    def results(self, numbers: tuple[int, ...]) -> list[int]:
        """Return the value of each step for the question's `numbers`."""
        values = dict(zip(self.letters, numbers, strict=True), two=2)
        results = []
        for step in self.steps:
            values["x"] = step.value(values)
            results.append(values["x"])
        return results

    def row(self, numbers: tuple[int, ...], words: dict[str, str]) -> Row:
        """Return the question and answer that `numbers` and `words` make."""
        values = dict(zip(self.letters, numbers, strict=True), two=2)
        question = self.question.format(**words, **values)
        lines = []
        for step, result in zip(self.steps, self.results(numbers), strict=True):
            left, sign, right = values[step.left], step.operator, values[step.right]
            calculation = f"{left} {sign} {right} = <<{left}{sign}{right}={result}>>{result}"
            lines.append(step.sentence.format(**words, calculation=calculation))
            values["x"] = result
        return {"question": question, "answer": "\n".join([*lines, f"#### {values['x']}"])}


# A sum or difference asked for alone is also the first step of a longer problem. So training shows nearly every
# calculation, though never in a problem with the numbers of one in another split.
TEMPLATES = (
    Template(
        "{name} has {a} {things}. {pronoun} buys {b} more. How many {things} does {name} have now?",
        (Step("{name} has {calculation} {things}.", "a", "+", "b"),),
    ),
    Template(
        "{name} has {a} {things}. {pronoun} gives {b} of them to {friend}. How many {things} does {name} have left?",
        (Step("{name} has {calculation} {things} left.", "a", "-", "b"),),
    ),
    Template(
        "{name} has {a} {things} and {friend} has {b}. {name} finds {c} more. How many {things} do they have together?",
        (
            Step("At first they have {calculation} {things}.", "a", "+", "b"),
            Step("Together they then have {calculation} {things}.", "x", "+", "c"),
        ),
    ),
    Template(
        "{name} has {a} {things}. {pronoun} gives {b} of them to {friend} and then buys {c} more. "
        "How many {things} does {name} have now?",
        (
            Step("After giving, {name} has {calculation} {things}.", "a", "-", "b"),
            Step("Then {name} has {calculation} {things}.", "x", "+", "c"),
        ),
    ),
    Template(
        "{name} has {a} {things}. {friend} has twice as many and finds {b} more. How many {things} does {friend} have?",
        (
            Step("At first {friend} has {calculation} {things}.", "two", "*", "a"),
            Step("Then {friend} has {calculation} {things}.", "x", "+", "b"),
        ),
    ),
)


def split_of(numbers: tuple[int, ...]) -> str:
    """Return the one split in which a question with these numbers, in any order and template, may stand.

    Parameters
    ----------
    numbers
        The numbers of the question.
    """
    # Not hash(), whose value for text changes with every interpreter.
    digest = hashlib.sha256(",".join(map(str, sorted(numbers))).encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    for split, share in SPLITS.items():
        if percent < share:
            return split
        percent -= share
    raise AssertionError(f"the shares of SPLITS add up to {sum(SPLITS.values())}, not to 100")


@cache
def _combinations(template: Template, split: str) -> list[tuple[int, ...]]:
    return [
        numbers
        for numbers in product(NUMBERS, repeat=len(template.letters))
        if split_of(numbers) == split and min(template.results(numbers)) >= NUMBERS.start
    ]


def capacity(split: str) -> int:
    """Return how many different questions `split` has.

    Raises
    ------
    ValueError
        If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the demo has no split {split!r}; choose one of {', '.join(SPLITS)}")
    return sum(len(_combinations(template, split)) * template.wordings for template in TEMPLATES)


def _questions(split: str, seed: int) -> Iterator[Row]:
    rng = random.Random(f"{split} {seed}")  # text seeds go through SHA-512, not through hash()
    while True:
        template = rng.choice(TEMPLATES)
        numbers = rng.choice(_combinations(template, split))
        name, friend = rng.sample(sorted(PEOPLE), 2)
        words = {"name": name, "pronoun": PEOPLE[name], "friend": friend, "things": rng.choice(THINGS)}
        yield template.row(numbers, words)


def generate(split: str, count: int, seed: int) -> list[Row]:
    """Return the first `count` problems of a split, each question once.

    A longer list begins with the shorter ones. Which numbers stand in which split is the same for all seeds.

    Parameters
    ----------
    split
        "train", "validation" or "test".
    count
        How many problems.
    seed
        Decides which problems are drawn and their order.

    Returns
    -------
    list of dict
        `question` and `answer`; the answer holds the reasoning with GSM8K's calculator annotations
        (`<<5+7=12>>`), a newline, and `#### ` with the number.

    Raises
    ------
    ValueError
        If there is no such split or it has fewer than `count` questions.
    """
    most = capacity(split)
    if not 0 <= count <= most:
        raise ValueError(
            f"cannot make {count} questions of the demo's {split} split; it has 0 to {most}, "
            "so ask for a count in that range"
        )
    rows: dict[str, Row] = {}
    questions = _questions(split, seed)
    while len(rows) < count:
        row = next(questions)
        rows.setdefault(row["question"], row)
    return list(rows.values())


class Demo(Gsm8k):
    """GSM8K's format and marks, with rows that are generated."""

    kind = "demo"
    # Under the demo's own tokenizer: 79,007 tokens in 1,100 examples.
    lengths = Lengths(
        tokens=79_007 / 1100,
        characters_per_token=Gsm8k.lengths.characters_per_token,
        shortest_prompt=16,
        longest_answer=14,
    )
    generated_as = "KAVA's generated word problems"

    def load(self, data: DemoData) -> Rows:  # type: ignore[override]
        sizes = {"train": data.train, "validation": data.validation, "test": data.test}
        return self.checked(Rows({split: generate(split, count, data.seed) for split, count in sizes.items()}))
