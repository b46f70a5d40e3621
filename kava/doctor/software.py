"""Python, the packages against their pins, Snakemake and its profile."""

import platform
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from kava.doctor.check import Check, fail, ok, warning

INSTALL = "run `python -m pip install --constraint constraints.txt --editable .` in the repository"
SHOWN = 4


def project_of(repository: Path) -> dict[str, Any]:
    """`requires-python` and `dependencies` of the checkout's pyproject.toml, else of the installed package."""
    file = repository / "pyproject.toml"
    if file.is_file():
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    needed = map(Requirement, requires("kava") or [])
    return {
        "requires-python": metadata("kava")["Requires-Python"],
        "dependencies": [str(requirement) for requirement in needed if requirement.marker is None],
    }


def python(project: dict[str, Any]) -> Check:
    """Python's version against `requires-python`."""
    allowed, installed = project["requires-python"], platform.python_version()
    if installed not in SpecifierSet(allowed, prereleases=True):
        return fail("python", f"{installed}, and KAVA needs {allowed}", "make the environment with such a Python")
    return ok("python", installed)


def packages(project: dict[str, Any], constraints: Path) -> Check:
    """What is installed against the ranges, which must hold, and the pins of a checkout, which are tested."""
    broken = list(_out_of_range(map(Requirement, project["dependencies"])))
    if broken:
        return fail("packages", ", ".join(broken), INSTALL)
    if not constraints.is_file():
        return ok("packages", f"{len(project['dependencies'])} needed, and all are in range")
    pins = dict(line.split("==") for line in constraints.read_text(encoding="utf-8").split("\n") if "==" in line)
    in_use = {name: installed for name in pins if (installed := _public(name))}
    other = [f"{name} {in_use[name]} (pinned {pin})" for name, pin in pins.items() if in_use.get(name, pin) != pin]
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        return warning("packages", f"{', '.join(other[:SHOWN])}{more} not as tested", INSTALL)
    return ok("packages", f"{len(pins)} pins, and none is installed in another version")


def snakemake(repository: Path) -> Check:
    """Snakemake, the Snakefile and the profiles; `packages` has compared the version."""
    installed = _public("snakemake")
    if installed is None:
        return fail("snakemake", "is not installed", INSTALL)
    if not (repository / "workflow").is_dir():
        fix = "clone the repository for the workflow; the stages run one by one from any folder"
        return warning("snakemake", f"{installed}, and no workflow beside the installed package", fix)
    profiles = {path.parent.name: path for path in sorted(repository.glob("workflow/profiles/*/*.yaml"))}
    if "default" not in profiles:
        return warning(
            "snakemake", f"no profile in {repository}/workflow/profiles/default", "run `git checkout workflow`"
        )
    if not (Path.cwd() / "Snakefile").is_file():
        return warning("snakemake", f"no Snakefile in {Path.cwd()}", f"run in the repository: `cd {repository}`")
    missing = [f"{name} needs {plugin}" for name, path in profiles.items() if (plugin := _missing_plugin(path))]
    message = f"{installed}, profiles {', '.join(profiles)}"
    return ok("snakemake", f"{message} ({', '.join(missing)})" if missing else message)


def _missing_plugin(profile: Path) -> str | None:
    """Package of a profile's executor, if it is not installed."""
    executor = (yaml.safe_load(profile.read_text(encoding="utf-8")) or {}).get("executor")
    plugin = f"snakemake-executor-plugin-{executor}"
    return plugin if executor and _public(plugin) is None else None


def _out_of_range(requirements: Iterable[Requirement]) -> Iterator[str]:
    for requirement in requirements:
        installed = _public(requirement.name)
        if installed is None:
            yield f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name} {installed} (needed {requirement.specifier})"


def _public(name: str) -> str | None:
    """Installed version without the part that names a build, as in 2.13.0+cu130; None if it is not installed."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None
