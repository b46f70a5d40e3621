"""What a task's answers are judged by: one number per question, and which way is better."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number per question; a model's is the mean over the questions.

    Attributes
    ----------
    name
        Key in `samples.jsonl`, in an evaluation's manifest and in `ab_report.json`.
    label
        As the report writes it.
    higher_is_better
        Whether more is better.
    proportion
        Whether a question's number is a mark, 0 or 1, so that the mean is a share of questions (Wilson's interval,
        McNemar's test); otherwise it is any finite number (bootstrap, sign-flip permutation).
    unit
        What the number counts, empty for a share.
    meaning
        A sentence for the report's list of words.
    """

    name: str
    label: str
    higher_is_better: bool = True
    proportion: bool = True
    unit: str = ""
    meaning: str = ""

    @property
    def sign(self) -> int:
        """What a difference is multiplied with, so that more than 0 is better."""
        return 1 if self.higher_is_better else -1

    def allows(self, value: object) -> bool:
        """Whether a question can have this number."""
        if self.proportion:
            return value in (0, 1)
        return isinstance(value, int | float) and math.isfinite(value)


STRICT_MATCH = Metric(
    "strict_match",
    "strict match",
    meaning="The number after #### in the answer is the gold one; the accuracy of this page.",
)
FLEXIBLE_EXTRACT = Metric(
    "flexible_extract",
    "flexible extract",
    meaning="The last number in the answer is the gold one, wherever it stands.",
)
ANSWER_NLL = Metric(
    "answer_nll",
    "answer NLL",
    higher_is_better=False,
    proportion=False,
    unit="nats per token",
    meaning="Negative log-likelihood of the row’s own answer, mean over its tokens: lower is better.",
)
TEACHER_AGREEMENT = Metric(
    "teacher_agreement",
    "teacher agreement",
    proportion=False,
    meaning="Share of the tokens of the row’s own answer at which the model’s likeliest next token is the teacher’s.",
)
