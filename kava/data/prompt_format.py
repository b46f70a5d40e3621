"""The prompt that a student was trained on, as its folder carries it: in `config.json`, which every copy has."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from kava.errors import UserError

# Of `config.json`; transformers keeps settings that it does not know, also when it saves or publishes a model anew.
KEY = "kava"


@dataclass(frozen=True)
class PromptFormat:
    """What a student was asked in training and evaluation.

    Attributes
    ----------
    prompt
        A format string with `{question}`; other braces are doubled.
    stop
        Strings that end an answer, beside the end token.
    """

    prompt: str
    stop: list[str]

    def fill(self, question: str) -> str:
        """The prompt of a question; white space at the end of a prompt belongs to the answer's first token."""
        text = self.prompt.format(question=question)
        return text.rstrip() if self.trims else text

    @property
    def trims(self) -> bool:
        """Whether the end of a question is the end of the prompt."""
        return self.prompt.endswith("{question}")

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `config.json` and in the manifest of a distillation."""
        return asdict(self)

    @classmethod
    def of_student(cls, folder: Path) -> Self:
        """Read it from a student's folder.

        Raises
        ------
        UserError
            There is no such folder, or it holds no student that KAVA trained.
        """
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder; give that of a trained student, results/<experiment>/<arm>/seed-<n>/student "
                "(one on the hub comes here with `hf download NAME --local-dir FOLDER`)"
            )
        path = folder / "config.json"
        if not path.is_file():
            inside = folder / "student"
            hint = f"give {inside}" if (inside / "config.json").is_file() else "give the folder of a trained student"
            raise UserError(f"{folder} holds no model: it has no config.json; {hint}")
        try:
            found = TypeAdapter(cls).validate_python(json.loads(path.read_text(encoding="utf-8"))[KEY])
            if [name for _, name, _, _ in Formatter().parse(found.prompt) if name is not None] != ["question"]:
                raise ValueError(f"{KEY}.prompt has no place for the question, or another field")
            return found
        except KeyError:
            raise UserError(
                f"{path} does not say which prompt the model was trained on ({KEY}.prompt): it is no student that "
                "`kava distill` exported, or one of an earlier version; distil it again"
            ) from None
        except (ValidationError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is damaged ({reason}); distil the student again, or copy it again") from None
