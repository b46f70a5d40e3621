"""Make a student: some layers of an existing model, or a small random model of its family.

    kava init-student --from MODEL --layers 10 --output DIRECTORY
    kava init-student --from MODEL --keep-layers 0,3,6,9 --output DIRECTORY
    kava init-student --from MODEL --layers 10 --by importance --text FILE --output DIRECTORY
    kava init-student --from MODEL --layers 10 --mlp-channels 1024 --kv-heads 2 --output DIRECTORY
    kava init-student --like MODEL --output DIRECTORY --layers 3 --hidden 48 --heads 4 --kv-heads 2

`--from` keeps layers of MODEL as they are, with its embeddings, head and tokenizer; which ones stands in the student's
config.json as kept_layers, where layer_map: {kind: kept} reads it. With --layers they are spread evenly, the first and
the last among them; or those that change what they read the most (one minus the cosine of what goes into a layer and
what comes out, on the first tokens of a text file). --mlp-channels and --kv-heads keep those of the largest weights in
each layer. `student.keep_layers` keeps layers without a directory.

`--like` gives a model of MODEL's family and vocabulary in another geometry, for smoke runs and tests. It knows nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from kava.commandline import option, run_command
from kava.errors import UserError
from kava.text import first_line

SIZES = {"hidden": 48, "heads": 4, "kv-heads": 2, "seed": 0}
RANDOM_SIZES = ("hidden", "heads", "seed")  # a cut student may have fewer KV heads
LIKE_LAYERS = 3
IMPORTANCE_TOKENS = 4096


def main(argv: list[str] | None = None) -> int:
    return run_command(
        "kava init-student", __doc__, argv, _make,
        option("--from", dest="source", help="model to cut: a directory, or a hub id with --revision"),
        option("--like", help="model whose family, vocabulary and tokenizer are taken"),
        option("--revision", help="commit of a hub id"),
        option("--output", required=True, type=Path, help="directory to write"),
        option("--layers", type=int, help=f"how many; of --like {LIKE_LAYERS} by default"),
        option("--keep-layers", help="with --from: numbers of layers from 0, such as 0,3,6,9"),
        option("--by", choices=["depth", "importance"], default="depth", help="with --from: which of the layers"),
        option("--text", type=Path, help="with --by importance: UTF-8 text to read"),
        option("--mlp-channels", type=int, help="with --from: how many of each layer; default: all"),
        *(
            option(f"--{name}", type=int, help=f"with --like; default: {default}") for name, default in SIZES.items()
        ),
    )  # fmt: skip


def _make(arguments: argparse.Namespace) -> None:
    if (arguments.source is None) == (arguments.like is None):
        raise UserError("give --from MODEL for a student cut from a model, or --like MODEL for a random one")
    if arguments.source:
        _cut(arguments)
    else:
        _draw(arguments)


def _cut(arguments: argparse.Namespace) -> None:
    if given := [name for name in RANDOM_SIZES if getattr(arguments, name) is not None]:
        raise UserError(f"--{given[0]} is of --like: a student cut from a model has the model's own sizes; remove it")
    if (arguments.layers is None) == (arguments.keep_layers is None):
        raise UserError("give --layers N, how many to keep, or --keep-layers 0,3,6, which")
    by_importance = arguments.by == "importance"
    if by_importance != (arguments.text is not None) or (by_importance and arguments.keep_layers):
        raise UserError("--by importance goes with --layers N and --text FILE")

    import torch
    from pydantic import ValidationError

    from kava.config.models import Student
    from kava.models.cut import importance, most_important
    from kava.models.load import build, load_student, load_tokenizer
    from kava.models.narrow import narrow_model

    keep: Any = arguments.layers
    if arguments.keep_layers:
        try:
            keep = [int(number) for number in arguments.keep_layers.split(",")]
        except ValueError:
            raise UserError(f"--keep-layers {arguments.keep_layers!r} is no list of numbers such as 0,3,6") from None
    whole: dict[str, Any] = {"model": arguments.source, "revision": arguments.revision}
    if by_importance:
        source = Student.model_validate(whole)
        ids = load_tokenizer(source)(_text(arguments.text), return_tensors="pt").input_ids[:, :IMPORTANCE_TOKENS]
        scores = importance(load_student(source, torch.device("cpu")), ids)
        print("one minus the cosine of each layer's input and output: " + ", ".join(f"{s:.3f}" for s in scores))
        keep = most_important(scores, keep)
    try:
        source = Student.model_validate(whole | {"keep_layers": keep})
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    student = load_student(source, torch.device("cpu"))
    if arguments.mlp_channels is not None or arguments.kv_heads is not None:
        student = narrow_model(student, arguments.mlp_channels, arguments.kv_heads, build)
    student.save_pretrained(arguments.output)
    load_tokenizer(source).save_pretrained(arguments.output)
    kept = ", ".join(map(str, student.config.kept_layers))
    print(f"{arguments.output}: layers {kept}, {student.num_parameters():,} parameters")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {file} cannot be read as UTF-8 ({first_line(error)})") from None


def _draw(arguments: argparse.Namespace) -> None:
    if arguments.keep_layers or arguments.text or arguments.by != "depth" or arguments.mlp_channels:
        raise UserError(
            "--keep-layers, --by, --text and --mlp-channels are of --from: a random student has nothing of the model's"
        )
    sizes = {name: getattr(arguments, name.replace("-", "_")) for name in SIZES}
    sizes = {name: SIZES[name] if value is None else value for name, value in sizes.items()}
    layers = LIKE_LAYERS if arguments.layers is None else arguments.layers
    hidden, heads, kv_heads = sizes["hidden"], sizes["heads"], sizes["kv-heads"]
    if min(layers, hidden, heads, kv_heads) < 1:
        raise UserError("--layers, --hidden, --heads and --kv-heads must be 1 at least")
    if hidden % (2 * heads) or heads % kv_heads:
        raise UserError(
            f"--hidden {hidden} must be a multiple of twice --heads {heads}, and --heads a multiple of --kv-heads "
            f"{kv_heads}"
        )

    import torch

    from kava.config.models import ModelSettings
    from kava.models.load import build, load_model_config, load_tokenizer

    source = ModelSettings(model=arguments.like, revision=arguments.revision)
    config = load_model_config(source)
    config.update(
        {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": hidden // heads,
        }
    )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    torch.manual_seed(sizes["seed"])
    build(config, dtype=torch.float32).save_pretrained(arguments.output)
    load_tokenizer(source).save_pretrained(arguments.output)
