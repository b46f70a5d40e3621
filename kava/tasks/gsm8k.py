"""GSM8K, or data in its format: a question, and an answer that reasons and then ends in `#### <number>`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kava.config.data import Gsm8kData
from kava.errors import UserError
from kava.tasks.base import Breakdown, Harness, Lengths, Row, Rows, Task, Written
from kava.tasks.files import Reading, load_folder, missing, require_text
from kava.tasks.gold import ANSWER_MARK, Unmatched, ending, harness_gsm8k, is_right, marked, spelled, unmatched
from kava.tasks.metric import FLEXIBLE_EXTRACT, STRICT_MATCH
from kava.text import some

# GSM8K's calculator annotation, of which one may hold another's beginning.
EQUATION = re.compile(r"<<.*?>>")
_STEP = re.compile(r"<<[^<>]*>>")
# Of a split: with more gold answers that nothing can match, its data is of another kind.
MOST_UNMATCHED = 0.01


def steps_of(gold: str) -> int:
    """Reasoning steps of a solution: its calculator annotations `<<...>>`, or its lines where it has none.

    The line of the final answer, `####`, is no step.
    """
    lines = [line for line in gold.splitlines() if line.strip() and not line.lstrip().startswith(ANSWER_MARK)]
    return len(_STEP.findall(gold)) or len(lines)


class Gsm8k(Task):
    """Rows of `question` and `answer`; answers are generated, and marked by the harness's own GSM8K filters."""

    kind = "gsm8k"
    metrics = (STRICT_MATCH, FLEXIBLE_EXTRACT)
    breakdowns = (Breakdown("steps", "By steps of the solution", "step", steps_of),)
    essential = f"{ANSWER_MARK} and numbers"
    form = "with '#### <number>' at the end of answers"
    # GSM8K under Qwen2.5's tokenizer: 1,390,694 tokens in 7,473 training examples of 4,042,914 characters. The mark and
    # number of an answer are 5 tokens on average.
    lengths = Lengths(
        tokens=1_390_694 / 7473,
        characters_per_token=4_042_914 / 1_390_694,
        shortest_prompt=16,
        longest_answer=14,
        train_rows=7473,
        test_rows=1319,
        longest_prompts={"openai/gsm8k": 215},
    )

    def load(self, data: Gsm8kData) -> Rows:
        """Rows of a folder, with gold answers spelled as the harness's filters read them.

        Rows of which the filters read the gold answer are left as they are, to the byte.

        Raises
        ------
        UserError
            What `kava.tasks.files.load_folder` raises; an answer without `####`; more than `MOST_UNMATCHED` of a
            split's gold answers that no answer can match.
        """
        return self.checked(load_folder(data, READING))

    def checked(self, rows: Rows) -> Rows:
        """Rows whose gold answers can be matched, with sentences on those that were changed or cannot be."""
        splits, warnings = {}, list(rows.warnings)
        for split, of_split in rows.splits.items():
            _require_marks(of_split, split)
            splits[split], said = _as_the_filters_read(of_split, split)
            warnings += said
        return Rows(splits, rows.notes, warnings)

    def answer_start(self, answer: str) -> int:
        return answer.rindex(ANSWER_MARK)

    def essentials(self, text: str) -> Any:
        scored = self.harness.definition["filter_list"][0]["filter"][0]["regex_pattern"]
        return re.findall(r"[#0-9]", text), re.findall(scored, text)

    def written(self, text: str, ended: bool, gold: str) -> Written | None:
        """What a model wrote, up to its first `#### <number>`; one without gets its last number as that line.

        It is right if both of the harness's filters say so of what it has become. None for a text without any number,
        and for one that was cut before `#### <number>` or in it: its last number may be any one of the reasoning.
        """
        answer = marked(text, ended)
        return None if answer is None else Written(answer, is_right(answer, gold))

    def equations_only(self, answer: str) -> str:
        """An answer whose reasoning is only its equations, each with its `<<` `>>`, joined by one space.

        What stands between reasoning and `####`, GSM8K's line break, is kept, also where there is no equation: the
        tokens of the result are then those of the original.
        """
        reasoning = answer[: self.answer_start(answer)]
        line_break = reasoning[len(reasoning.rstrip()) :]
        return " ".join(EQUATION.findall(reasoning)) + line_break + answer[len(reasoning) :]

    @property
    def harness(self) -> Harness:
        filters = {STRICT_MATCH.name: "strict-match", FLEXIBLE_EXTRACT.name: "flexible-extract"}
        return Harness("kava_gsm8k", "GSM8K", harness_gsm8k(), filters)

    def hopeless(self, samples: Sequence[Mapping[str, Any]], file: Path) -> str | None:
        if any(sample[metric.name] for sample in samples for metric in self.metrics):
            return None
        unmarked = sum(ANSWER_MARK not in sample["answer"] for sample in samples)
        return (
            f"the teacher answered none of {len(samples)} questions right under either filter, {unmarked} without "
            f"`{ANSWER_MARK}`; its answers are in {file}. Students can hardly do better, and arms that all score "
            "nothing are not compared: if answers are cut, raise evaluation.max_new_tokens; if they have another form, "
            "change template or chat, or take a teacher that follows it. Ctrl-C now trains nothing in vain."
        )


def _row(record: dict[str, Any]) -> Row:
    row: Row = {}
    for name in ("question", "answer"):
        if name not in record:
            raise missing(name, record)
        row[name] = require_text(name, record[name], "question and answer")
    if not row["question"].strip():
        raise ValueError("question is empty")
    return row


READING = Reading(("question", "answer"), "question and answer, both text", _row)


def _require_marks(rows: Sequence[Row], split: str) -> None:
    without = [number for number, row in enumerate(rows) if ANSWER_MARK not in row["answer"]]
    if without:
        number = without[0]
        raise UserError(
            f"{split} row {number} has no '{ANSWER_MARK}' in its answer {rows[number]['answer'][-60:]!r} "
            f"({len(without)} of {len(rows)} rows have none); answers end in '{ANSWER_MARK} <number>': correct or drop "
            "these rows, or set data.kind: text for answers of another form"
        )


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
            f"{split}: {len(changed)} of {len(rows)} answers {'is' if len(changed) == 1 else 'are'} written in a way "
            f"that the filters do not read, and spelled anew (row {first}: {ending(rows[first]['answer'])} becomes "
            f"{ending(again[first])})."
        )
    if left:
        warnings.append(f"{split}: {_no_match(rows, left)}; correct or drop these rows.")
    return [
        row | {"answer": again[n]} if n in again and n not in still else row for n, row in enumerate(rows)
    ], warnings


def _no_match(rows: Sequence[Row], left: Sequence[Unmatched]) -> str:
    first = left[0]
    named = some([item.row for item in left])
    return (
        f"no answer can match {len(left)} of {len(rows)} gold answers (row {named}: the first ends in "
        f"{ending(rows[first.row]['answer'])}, of which {first.filter} reads {first.extracted!r})"
    )
