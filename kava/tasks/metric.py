"""What a task's answers are judged by: one number per question, and which way is better."""

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
    """

    name: str
    label: str
    higher_is_better: bool = True
    proportion: bool = True
    unit: str = ""


STRICT_MATCH = Metric("strict_match", "strict match")
FLEXIBLE_EXTRACT = Metric("flexible_extract", "flexible extract")
ANSWER_NLL = Metric("answer_nll", "answer NLL", higher_is_better=False, proportion=False, unit="nats per token")
