"""Make a student with random weights and an existing model's tokenizer, for smoke runs and tests.

    kava init-student --like MODEL_DIRECTORY --output DIRECTORY --layers 3 --hidden 48 --heads 4 --kv-heads 2

A model of the same family and vocabulary in another geometry. It knows nothing.
"""

import argparse
import sys
from pathlib import Path

from kava.commandline import command_parser, exit_status


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("kava init-student", __doc__)
    parser.add_argument("--like", required=True, help="directory whose family, vocabulary and tokenizer are taken")
    parser.add_argument("--output", required=True, type=Path, help="directory to write")
    for name, default in (("layers", 3), ("hidden", 48), ("heads", 4), ("kv-heads", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.hidden % (2 * arguments.heads) or arguments.heads % arguments.kv_heads:
        parser.error(
            f"--hidden {arguments.hidden} must be a multiple of twice --heads {arguments.heads}, and --heads a "
            f"multiple of --kv-heads {arguments.kv_heads}"
        )
    return exit_status("kava init-student", lambda: _make(arguments))


def _make(arguments: argparse.Namespace) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
