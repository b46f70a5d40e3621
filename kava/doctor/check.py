"""One line of the doctor."""

from dataclasses import dataclass
from typing import Literal

from kava.errors import UserError

Status = Literal["ok", "warning", "fail"]


@dataclass(frozen=True)
class Check:
    """What was looked at, the result in a phrase, and what to do if it is not good."""

    name: str
    status: Status  # `fail`: the preset cannot run here; `warning`: it can, and somebody may want to know
    message: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<13} {self.message}" + (f"; {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, str | None]:
        """As `kava doctor --json` prints it."""
        return {"name": self.name, "status": self.status, "told": self.message, "fix": self.fix}


def ok(name: str, message: str) -> Check:
    return Check(name, "ok", message)


def warning(name: str, message: str, fix: str) -> Check:
    return Check(name, "warning", message, fix)


def fail(name: str, message: str, fix: str) -> Check:
    return Check(name, "fail", message, fix)


def refused(name: str, error: UserError | str, about: str = "") -> Check:
    """A failure in the words of an error, whose end says what to do; `about` begins the message."""
    message, _, fix = str(error).partition("; ")
    return fail(name, about + message, fix)
