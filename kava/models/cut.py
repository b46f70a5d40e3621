"""A student cut from a model: some of its layers as they are, with its embeddings, its head and its tokenizer."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kava.errors import UserError
from kava.kv import ratio_map

# In the config.json of a student: which layers of the model that it was cut from its own are.
KEY = "kept_layers"
# Settings of families that have an entry for each layer.
PER_LAYER = ("layer_types", "no_rope_layers")


def chosen_layers(keep: int | Sequence[int], layers: int, name: str) -> list[int]:
    """The layers to keep of a model.

    Parameters
    ----------
    keep
        Their numbers from 0, or how many: then they are spread evenly, the first and the last among them.
    layers
        That the model has.
    name
        Of the model.

    Raises
    ------
    UserError
        The model has fewer layers.
    """
    last = keep - 1 if isinstance(keep, int) else max(keep)
    if last >= layers:
        wanted = f"{keep} layers" if isinstance(keep, int) else f"layer {last}"
        raise UserError(f"{wanted} of {name} cannot be kept, since it has {layers}, from 0 to {layers - 1}")
    return ratio_map(layers, keep) if isinstance(keep, int) else list(keep)


def cut_config(config: Any, kept: Sequence[int]) -> Any:
    """The configuration of a student of these layers; settings that are said layer by layer are those of its own."""
    settings = config.to_dict()
    for name in PER_LAYER:
        if settings.get(name):
            settings[name] = [settings[name][layer] for layer in kept]
    own = {KEY: list(kept), "num_hidden_layers": len(kept)}
    # What keys are scaled by the number of a layer would be scaled by another.
    if settings.get("scale_attn_by_inverse_layer_idx"):
        raise UserError(
            f"{config.model_type} with scale_attn_by_inverse_layer_idx scales the attention of a layer by its number, "
            "which a student of fewer layers has not; choose another model"
        )
    return type(config).from_dict(settings | own)


def layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a causal language model, and their name in it."""
    (found,) = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]
    return found


def cut_state(model: Any, kept: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a model's kept layers by the names that a student has for them, and all that is no layer's."""
    stack, _ = layers_of(model)
    of_layer = re.compile(rf"{re.escape(stack)}\.(\d+)\.")
    place = {layer: number for number, layer in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        if match := of_layer.match(name):
            if int(match[1]) not in place:
                continue
            name = f"{stack}.{place[int(match[1])]}.{name[match.end() :]}"
        state[name] = tensor
    return state


def cut_model(model: Any, kept: Sequence[int], make: Any) -> Any:
    """A student of some layers of a model, whose tensors it takes over.

    Parameters
    ----------
    model
        A causal language model of `transformers`.
    kept
        Numbers of layers.
    make
        Configuration → model with any weights.
    """
    return rebuilt(model, cut_config(model.config, kept), cut_state(model, kept), make)


def rebuilt(model: Any, config: Any, state: Mapping[str, Tensor], make: Any) -> Any:
    """A model of another configuration with tensors of this one; `make` gives it any weights first."""
    with torch.device("meta"):
        student = make(config)
    student.load_state_dict(state, assign=True)
    student.tie_weights()
    # Tables that no checkpoint holds, such as the frequencies of RoPE, are those of the whole model, too.
    whole = dict(model.named_non_persistent_buffers())
    for name, _ in list(student.named_non_persistent_buffers()):
        module, _, buffer = name.rpartition(".")
        setattr(student.get_submodule(module), buffer, whole[name])
    student.generation_config = model.generation_config
    return student.train(model.training)


def kept_layers(config: Any) -> list[int] | None:
    """Which layers of the model that a student was cut from its own are; None of one that was not cut."""
    kept: list[int] | None = config.to_dict().get(KEY)
    return kept


@torch.inference_mode()
def importance(model: Any, ids_BT: Tensor) -> list[float]:
    """How much each layer changes what it reads: one minus the cosine of its input and output, mean over tokens.

    The block influence of ShortGPT (Men et al. 2024, arXiv 2403.03853).

    Parameters
    ----------
    model
        A causal language model of `transformers`.
    ids_BT
        A text's ids, int64 `[1, T]`.
    """
    scores: list[float] = []

    def measure(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        cosine = functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
        scores.append(1.0 - float(cosine.mean()))

    _, layers = layers_of(model)
    hooks = [layer.register_forward_hook(measure) for layer in layers]
    try:
        model(input_ids=ids_BT, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return scores


def most_important(scores: Sequence[float], count: int) -> list[int]:
    """The `count` layers of the highest scores in their order; `UserError` if there are fewer."""
    if not 1 <= count <= len(scores):
        raise UserError(f"{count} layers of a model of {len(scores)} cannot be kept; give 1 to {len(scores)}")
    best = sorted(range(len(scores)), key=lambda layer: -scores[layer])[:count]
    return sorted(best)
