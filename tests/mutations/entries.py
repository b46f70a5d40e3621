"""The lists of mutations, `tests/mutations/<area>.yaml`: single faults that a user would suffer from."""

from collections import Counter
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

LISTS = Path(__file__).parent
REPOSITORY = LISTS.parents[1]


class Mutation(BaseModel):
    """One fault, and the tests that are about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="unique over all areas")
    file: str = Field(description="from the root of the repository")
    old: str = Field(min_length=1, description="text that the file holds exactly once")
    new: str = Field(description="text in its place")
    why: str = Field(min_length=1, description="what a user would suffer")
    tests: list[str] = Field(min_length=1, description="files, or file::function, the most likely first")
    equivalent: str | None = Field(None, description="why no test can notice; not in the score")
    area: str

    def apply(self, text: str) -> str:
        """The file's text with the fault in it."""
        assert text.count(self.old) == 1, f"{self.name}: `old` occurs {text.count(self.old)} times in {self.file}"
        return text.replace(self.old, self.new)


def load() -> list[Mutation]:
    """All entries, by area."""
    return [
        Mutation(**entry, area=path.stem)
        for path in sorted(LISTS.glob("*.yaml"))
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


def problems(mutations: list[Mutation]) -> list[str]:
    """One sentence per entry that no longer applies."""
    found = [f"{name}: the name is given twice" for name, n in Counter(m.name for m in mutations).items() if n > 1]
    for mutation in mutations:
        path = REPOSITORY / mutation.file
        if not path.is_file():
            found.append(f"{mutation.name}: {mutation.file} is missing")
            continue
        if (count := path.read_text(encoding="utf-8").count(mutation.old)) != 1:
            found.append(f"{mutation.name}: `old` occurs {count} times in {mutation.file}, not once")
        if mutation.old == mutation.new:
            found.append(f"{mutation.name}: `new` changes nothing")
        for test in mutation.tests:
            file, _, function = test.partition("::")
            if not (REPOSITORY / file).is_file():
                found.append(f"{mutation.name}: {file} is missing")
            elif function and f"def {function}(" not in (REPOSITORY / file).read_text(encoding="utf-8"):
                found.append(f"{mutation.name}: {file} has no {function}")
    return found
