"""Make a student with random weights and an existing model's tokenizer, for smoke runs and tests.

    kava init-student --like MODEL_DIRECTORY --output DIRECTORY --layers 3 --hidden 48 --heads 4 --kv-heads 2

A model of the same family and vocabulary in another geometry. It knows nothing.
"""

import argparse
from pathlib import Path

from kava.commandline import option, run_command
from kava.errors import UserError


def main(argv: list[str] | None = None) -> int:
    sizes = (("layers", 3), ("hidden", 48), ("heads", 4), ("kv-heads", 2), ("seed", 0))
    return run_command(
        "kava init-student", __doc__, argv, _make,
        option("--like", required=True, help="directory whose family, vocabulary and tokenizer are taken"),
        option("--output", required=True, type=Path, help="directory to write"),
        *(option(f"--{name}", type=int, default=default, help="default: %(default)s") for name, default in sizes),
    )  # fmt: skip


def _make(arguments: argparse.Namespace) -> None:
    if arguments.hidden % (2 * arguments.heads) or arguments.heads % arguments.kv_heads:
        raise UserError(
            f"--hidden {arguments.hidden} must be a multiple of twice --heads {arguments.heads}, and --heads a "
            f"multiple of --kv-heads {arguments.kv_heads}"
        )

    import torch

    from kava.config.schema import ModelSettings
    from kava.models.load import build, load_model_config, load_tokenizer

    source = ModelSettings(model=arguments.like)
    config = load_model_config(source)
    config.update(
        {
            "num_hidden_layers": arguments.layers,
            "hidden_size": arguments.hidden,
            "intermediate_size": 3 * arguments.hidden,
            "num_attention_heads": arguments.heads,
            "num_key_value_heads": arguments.kv_heads,
            "head_dim": arguments.hidden // arguments.heads,
        }
    )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * arguments.layers
    torch.manual_seed(arguments.seed)
    build(config, dtype=torch.float32).save_pretrained(arguments.output)
    load_tokenizer(source).save_pretrained(arguments.output)
