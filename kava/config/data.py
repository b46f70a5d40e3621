"""Settings of the data, one class for each task of `kava/tasks/`: where rows come from, and how many."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kava.config.answers import Answers, GoldAnswers, TeacherAnswers
from kava.config.base import Place, Positive, Seed, Settings

QUESTION_AND_ANSWER = "Question: {question}\nAnswer: {answer}"
PLAIN = "{question}{answer}"


class DataSettings(Settings):
    """Base of the settings of every task's data, with what the rest of a configuration depends on.

    Attributes
    ----------
    template
        Text of an example, unless the configuration has its own.
    has_reasoning
        Whether a row's answer is a reasoning and then its result: what chooses among the tokens of the reasoning, or
        reads where it ends, needs one.
    may_be_chat
        Whether rows may be conversations, so that ids depend on the chat template whatever `chat` says.
    has_results
        Whether answers have a result that tells a right one from a wrong one.
    """

    template: ClassVar[str] = QUESTION_AND_ANSWER
    has_reasoning: ClassVar[bool] = True
    may_be_chat: ClassVar[bool] = False
    has_results: ClassVar[bool] = True

    kind: str
    # Left out of what is written down where it is the default, as before there was the setting.
    answers: Answers = Field(
        GoldAnswers(),
        exclude_if=lambda answers: isinstance(answers, GoldAnswers),
        description="what training questions are answered with: `gold`, as in the data; or `teacher`, as the teacher "
        "answers them",
    )

    @model_validator(mode="after")
    def _only_results_are_right_or_wrong(self) -> Self:
        answers = self.answers
        if isinstance(answers, TeacherAnswers) and answers.keep == "correct" and not self.has_results:
            raise ValueError(
                f"answers.keep: correct, but nothing tells a right answer from a wrong one in rows of kind: "
                f"{self.kind}; set answers: {{kind: teacher, keep: all}}"
            )
        return self

    @property
    def made_by(self) -> dict[str, Any]:
        """What rows depend on beside counts and files, for their content key."""
        return {}


class DemoData(DataSettings):
    """Word problems in GSM8K's format from a seeded generator."""

    # In the key of token sets and stores: to be changed with the rows that `kava.tasks.demo.generate` gives, and only
    # then; tests/test_demo.py has the hash of those. It is that of an early version's source file, so that the stores
    # of that version are found.
    generator: ClassVar[str] = "fdf595a44d576923e531c814792aaf0d571f9b540748ce5f282bf0a06779f2fa"

    kind: Literal["demo"] = "demo"
    train: Positive = Field(1000, description="training examples")
    validation: Positive = Field(100, description="held-out examples for the alignment metrics")
    test: Positive = Field(500, description="test questions")
    seed: Seed = Field(0, description="seed of the generator")

    @model_validator(mode="before")
    @classmethod
    def _own_data_is_of_another_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and (own := [key for key in ("path", "revision") if key in data]):
            raise ValueError(
                f"{own[0]!r} names data of your own, and this is the demo's generator; set kind: gsm8k beside it for "
                "answers that end in '#### <number>', kind: text for any other"
            )
        return data

    @property
    def made_by(self) -> dict[str, Any]:
        return {"seed": self.seed, "generator": self.generator}


class FolderData(DataSettings):
    """Rows from files: of a directory, or of a data set of the hub."""

    path: Place = Field(
        description="hub id, or a directory: train.jsonl and test.jsonl, Parquet (train-*.parquet, test-*.parquet), or "
        "what DatasetDict.save_to_disk wrote",
    )
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")
    train: Positive | None = Field(None, description="first N training examples; null: all but the held-out ones")
    validation: Positive = Field(128, description="held-out examples, taken from the end of the training split")
    test: Positive | None = Field(None, description="first N test questions; null: all")


class Gsm8kData(FolderData):
    """GSM8K (Cobbe et al. 2021, arXiv 2110.14168), or data in its format: every `answer` ends in `#### <number>`."""

    kind: Literal["gsm8k"] = "gsm8k"
    path: Place = Field("openai/gsm8k", description=str(FolderData.model_fields["path"].description))


class TextData(FolderData):
    """Any text: rows of `prompt` and `response`, or of chat `messages`; students are judged by their likelihood."""

    template: ClassVar[str] = PLAIN
    has_reasoning: ClassVar[bool] = False
    may_be_chat: ClassVar[bool] = True
    has_results: ClassVar[bool] = False
    # In the key of token sets; to be raised when `kava.tasks.text` makes other rows of the same files.
    version: ClassVar[int] = 1

    kind: Literal["text"] = "text"
    test: Positive | None = Field(None, description="first N test rows; null: all")

    @property
    def made_by(self) -> dict[str, Any]:
        return {"version": self.version}


Data = Annotated[DemoData | Gsm8kData | TextData, Field(discriminator="kind")]
