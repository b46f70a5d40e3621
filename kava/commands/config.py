"""Show the resolved configuration, or write the files that are generated from its models.

    kava config [--preset NAME] [--json]
    kava config --write-docs

`--write-docs` writes workflow/schemas/config.schema.json and docs/configuration.md; a test fails when they drift.
"""

import argparse
import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kava.commandline import CONFIGURATION, load_jobs, option, run_command
from kava.config.base import How
from kava.config.load import REPOSITORY
from kava.config.schema import Config
from kava.errors import UserError
from kava.files import write_atomic

SCHEMA_FILE = REPOSITORY / "workflow" / "schemas" / "config.schema.json"
TABLE_FILE = REPOSITORY / "docs" / "configuration.md"


def main(argv: list[str] | None = None) -> int:
    as_json = option("--json", action="store_true", help="print JSON in place of YAML")
    write = option("--write-docs", action="store_true", help="write the generated schema and documentation")
    return run_command("kava config", __doc__, argv, _show, *CONFIGURATION, as_json, write)


def _show(arguments: argparse.Namespace) -> None:
    if arguments.write_docs:
        if not SCHEMA_FILE.parent.is_dir():
            raise UserError("--write-docs writes files of a checkout, and this is an installed package; run it in one")
        write_atomic(SCHEMA_FILE, schema_text())
        write_atomic(TABLE_FILE, table_text())
        return
    settings = load_jobs(arguments).config.model_dump(mode="json")
    print(json.dumps(settings) if arguments.json else yaml.safe_dump(settings, sort_keys=False), end="")


def schema_text() -> str:
    """JSON schema of `config.yaml`, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def table_text() -> str:
    """Markdown documentation of every setting with its default."""
    lines = [
        "# Settings",
        "",
        "Generated from `kava/config/` by `kava config --write-docs`. A setting without default is given by",
        "every preset. `kava config --preset NAME` prints the values of a run. *How* marks what says how or where",
        "a stage runs and not what it makes: a change of it runs no stage again.",
    ]
    for title, model in _models(Config, ""):
        lines += ["", f"## {title or 'Top level'}", ""]
        if model.__doc__ and model is not Config:
            lines += [" ".join(model.__doc__.split()), ""]
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            meaning = ("*how:* " if How in field.metadata else "") + (field.description or "").replace("|", r"\|")
            lines.append(f"| `{name}` | {_default(field)} | {meaning.rstrip()} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return ""
    if isinstance(field.default, BaseModel):
        return f"`{field.default.kind}`" if hasattr(field.default, "kind") else "see below"
    return f"`{json.dumps(field.default)}`"


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for nested in _nested(field.annotation):
            kind = nested.model_fields.get("kind")
            label = f"{path}.{name}".lstrip(".") if nested.__name__ != "Arm" else "arms.<name>"
            yield from _models(nested, f"{label} (kind: {kind.default})" if kind else label)


def _nested(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if annotation is NoneType or (get_origin(annotation) is None and not isinstance(annotation, UnionType)):
        return []
    return [model for part in get_args(annotation) for model in _nested(part)]
