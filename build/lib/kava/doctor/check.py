"""One line of the doctor."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "fail"]


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found.

    Attributes
    ----------
    name
        Of the thing that was looked at.
    status
        `fail`: the preset cannot run here; `warning`: it can, and somebody may want to know.
    told
        What was found, in a phrase.
    fix
        What would mend it; None where nothing is to be mended.
    """

    name: str
    status: Status
    told: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<13} {self.told}" + (f"; {self.fix}" if self.fix else "")


def ok(name: str, told: str) -> Check:
    return Check(name, "ok", told)


def warning(name: str, told: str, fix: str) -> Check:
    return Check(name, "warning", told, fix)


def fail(name: str, told: str, fix: str) -> Check:
    return Check(name, "fail", told, fix)
