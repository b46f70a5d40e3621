"""The rows that a run reads: loaded, their gold answers looked at, and what a user should know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kava.config.schema import DemoData, Gsm8kData
from kava.data import gsm8k, load_splits
from kava.data.gold import Unmatched, ending, spelled, unmatched
from kava.data.gsm8k import Row
from kava.data.overlap import normalised
from kava.data.tokens import check_rows
from kava.errors import UserError

# Of a split: with more gold answers that nothing can match, its data is of another kind.
MOST_UNMATCHED = 0.01
# Of the training rows; a larger share for validation takes from training what it needs more.
USUAL_VALIDATION = 0.2
# How many rows a sentence names.
NAMED = 5


@dataclass(frozen=True)
class Rows:
    """Rows of a run.

    Attributes
    ----------
    splits
        `train`, `validation` and `test`, each rows of `question` and `answer`.
    notes
        Sentences on what was taken from where.
    warnings
        Sentences on what makes the results less than they seem.
    """

    splits: dict[str, list[Row]]
    notes: list[str]
    warnings: list[str]


def load_rows(data: DemoData | Gsm8kData) -> Rows:
    """Load the rows of a run, and spell gold answers as the harness's filters read them.

    Rows of which the filters read the gold answer are left as they are, to the byte.

    Raises
    ------
    UserError
        What `kava.data.gsm8k.load_splits` raises; an answer without `####`; more than `MOST_UNMATCHED` of a split's
        gold answers that no answer can match.
    """
    notes: list[str] = []
    warnings: list[str] = []
    if isinstance(data, Gsm8kData):
        folder = gsm8k.data_folder(data)
        train, test = (gsm8k.read_split(folder, split) for split in ("train", "test"))
        splits = gsm8k.divide(data, train, test)
        taken = f"validation is the last {data.validation} of {len(train)} training rows"
        notes.append(f"{taken}; train is the first {len(splits['train'])}")
        if data.validation > max(1, USUAL_VALIDATION * len(train)):
            warnings.append(
                f"{taken}, {data.validation / len(train):.0%} of them, and leaves {len(train) - data.validation} to "
                f"train on; with data.validation: {max(1, len(train) // 10)} it would take a tenth."
            )
    else:
        splits = load_splits(data)
    for split, rows in splits.items():
        check_rows(rows, split)
        splits[split], of_split = _as_the_filters_read(rows, split)
        warnings += of_split
    return Rows(splits, notes, warnings + _repeated(splits))


def _as_the_filters_read(rows: list[Row], split: str) -> tuple[list[Row], list[str]]:
    """The rows with gold answers that can be matched, and sentences on those that were changed or cannot be."""
    wrong = unmatched([row["answer"] for row in rows])
    if not wrong:
        return rows, []
    again = {item.row: spelled(rows[item.row]["answer"]) for item in wrong}
    numbers = list(again)
    still = {numbers[item.row] for item in unmatched(list(again.values()))}
    left = [item for item in wrong if item.row in still]
    if len(left) > MOST_UNMATCHED * len(rows):
        raise UserError(
            f"{split}: {_no_match(rows, left)}; answers are compared as numbers, so each has to end in "
            "'#### <number>', as '#### 18', with no unit, word or second '####': correct or drop these rows"
        )
    warnings = []
    changed = [row for row in numbers if row not in still]
    if changed:
        first = changed[0]
        warnings.append(
            f"{split}: {_of(len(changed), len(rows), 'answers')} written in a way that the filters do not read, and "
            f"spelled anew (row {first}: {ending(rows[first]['answer'])} becomes {ending(again[first])})."
        )
    if left:
        warnings.append(f"{split}: {_no_match(rows, left)}; correct or drop these rows.")
    return [
        row | {"answer": again[n]} if n in again and n not in still else row for n, row in enumerate(rows)
    ], warnings


def _no_match(rows: Sequence[Row], left: Sequence[Unmatched]) -> str:
    first = left[0]
    return (
        f"no answer can match {len(left)} of {len(rows)} gold answers (row {_some([item.row for item in left])}: "
        f"the first ends in {ending(rows[first.row]['answer'])}, of which {first.filter} reads {first.extracted!r})"
    )


def _repeated(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    """Sentences on questions of validation that are trained on, and on those that the test asks more than once."""
    questions = {split: [normalised(row["question"]) for row in rows] for split, rows in splits.items()}
    trained, different = set(questions["train"]), set(questions["test"])
    again = [row for row, question in enumerate(questions["validation"]) if question in trained]
    warnings = []
    if again:
        warnings.append(
            f"{_of(len(again), len(questions['validation']), 'validation questions')} in the training rows too "
            f"(validation row {_some(again)}), so what is measured on validation is better than on new questions; "
            "drop the repetitions."
        )
    if repetitions := len(questions["test"]) - len(different):
        warnings.append(
            f"{_of(repetitions, len(questions['test']), 'test questions')} in the test split before, which has "
            f"{len(different)} different ones; drop the repetitions."
        )
    return warnings


def _of(count: int, of: int, what: str) -> str:
    return f"{count} of {of} {what} {'is' if count == 1 else 'are'}"


def _some(rows: Sequence[int]) -> str:
    return ", ".join([*map(str, rows[:NAMED]), *(["…"] if len(rows) > NAMED else [])])
