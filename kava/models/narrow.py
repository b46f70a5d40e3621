"""A narrower model: of each layer the MLP channels and KV heads of the largest weights, all else as it is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kava.errors import UserError
from kava.models.cut import layers_of, rebuilt

GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
QUERY, KEY, VALUE, OUT = (f"self_attn.{name}_proj" for name in "qkvo")


def narrow_model(model: Any, mlp_channels: int | None, kv_heads: int | None, make: Any) -> Any:
    """A student with fewer MLP channels or KV heads in every layer.

    A channel's size is the product of the norms of its rows of the gate and up projections and of its column of the
    down projection; a KV head's that of the norms of its key and value projections. The query heads that read a KV
    head go with it.

    Parameters
    ----------
    model
        A causal language model of `transformers` whose layers are named as Llama's.
    mlp_channels, kv_heads
        How many of each layer to keep; None for all.
    make
        Configuration → model with any weights.

    Raises
    ------
    UserError
        The model has fewer, or its layers are named otherwise.
    """
    config, state = model.config, model.state_dict()
    stack, layers = layers_of(model)
    changed: dict[str, Any] = {}
    if mlp_channels is not None:
        _require(config, "MLP channels", state, f"{stack}.0", (GATE, UP, DOWN))
        _require_some("MLP channels", mlp_channels, config.intermediate_size)
        changed["intermediate_size"] = mlp_channels
    if kv_heads is not None:
        _require(config, "KV heads", state, f"{stack}.0", (QUERY, KEY, VALUE, OUT))
        heads = config.num_key_value_heads
        _require_some("KV heads", kv_heads, heads)
        dim = state[f"{stack}.0.{KEY}.weight"].shape[0] // heads
        queries = config.num_attention_heads // heads * kv_heads
        changed |= {"num_key_value_heads": kv_heads, "num_attention_heads": queries, "head_dim": dim}
    for number in range(len(layers)):
        layer = {
            name.removeprefix(f"{stack}.{number}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{stack}.{number}.")
        }
        if mlp_channels is not None:
            layer |= _narrow_mlp(layer, mlp_channels)
        if kv_heads is not None:
            layer |= _narrow_attention(layer, kv_heads, config.num_key_value_heads)
        state |= {f"{stack}.{number}.{name}": tensor for name, tensor in layer.items()}
    return rebuilt(model, type(config).from_dict(config.to_dict() | changed), state, make)


def _require(config: Any, what: str, state: Mapping[str, Tensor], first: str, names: tuple[str, ...]) -> None:
    if missing := [name for name in names if f"{first}.{name}.weight" not in state]:
        raise UserError(
            f"{what} of {config.model_type} cannot be left out: its layers have no {missing[0]}, as those of Llama and "
            "its relatives do; keep all of them, or choose such a model"
        )


def _require_some(what: str, count: int, there: int) -> None:
    if not 1 <= count <= there:
        raise UserError(f"{count} {what} cannot be kept of {there}; give 1 to {there}")


def _narrow_mlp(layer: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    rows = [layer[f"{name}.weight"].float().norm(dim=1) for name in (GATE, UP)]
    size = rows[0] * rows[1] * layer[f"{DOWN}.weight"].float().norm(dim=0)
    kept = size.topk(count).indices.sort().values
    return _rows(layer, (GATE, UP), kept) | {f"{DOWN}.weight": layer[f"{DOWN}.weight"][:, kept].contiguous()}


def _narrow_attention(layer: dict[str, Tensor], count: int, heads: int) -> dict[str, Tensor]:
    sizes = [layer[f"{name}.weight"].float().unflatten(0, (heads, -1)).flatten(1).norm(dim=1) for name in (KEY, VALUE)]
    kept = (sizes[0] * sizes[1]).topk(count).indices.sort().values
    queries = _of_heads(kept, layer[f"{QUERY}.weight"].shape[0] // heads)
    return (
        _rows(layer, (QUERY,), queries)
        | _rows(layer, (KEY, VALUE), _of_heads(kept, layer[f"{KEY}.weight"].shape[0] // heads))
        | {f"{OUT}.weight": layer[f"{OUT}.weight"][:, queries].contiguous()}
    )


def _rows(layer: dict[str, Tensor], names: tuple[str, ...], kept: Tensor) -> dict[str, Tensor]:
    """Rows of projections, and of their biases."""
    wanted = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    return {name: layer[name][kept].contiguous() for name in wanted if name in layer}


def _of_heads(heads: Tensor, width: int) -> Tensor:
    """Rows of heads that lie one behind the other, so many to a head."""
    return (heads[:, None] * width + torch.arange(width)).flatten()
