"""Which models keep a KV cache that KAVA can read: the rule by `config.json`, and a run of two tokens for the rest."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from kava.errors import UserError
from kava.kv import Geometry
from kava.text import first_line

READS = (
    "KAVA reads decoders of text whose every layer keeps keys and values of the same heads and head dim (Llama, "
    "Mistral, Qwen2, Qwen3, GPT-2 and their kin)"
)
SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")


def unreadable(config: Any) -> str | None:
    """Why KV cannot be read from the models of a `transformers` configuration; None if nothing in it says so.

    The kinds of layers are those that `transformers` itself makes a cache of.
    """
    settings = config.to_dict()
    kind = f"model type {config.model_type!r}"
    own_code = "AutoModelForCausalLM" in (settings.get("auto_map") or {})
    if settings.get("is_encoder_decoder"):
        return f"{kind} is an encoder with a decoder"
    if config.get_text_config(decoder=True) is not config:
        return f"{kind} is made of several models, of which a decoder of text is one"
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not own_code:
        return f"{kind} is no causal language model"
    # GPT-NeoX says `is_decoder: false`, too, and is one.
    if settings.get("is_decoder") is False and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return f"{kind} is an encoder, in which every token attends to all others"
    if settings.get("kv_lora_rank") is not None:
        return f"{kind} keeps one latent vector for all heads (multi-head latent attention), and no keys and values"
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # layers that only a cache of the model's own knows
        return f"{kind} has layers of kinds that no common cache holds"
    others = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if others:
        return f"{kind} has layers without keys and values of all tokens ({', '.join(sorted(others))})"
    for name in SIZES:
        try:
            value = getattr(config, name)  # under the family's own name for it
        except AttributeError:
            return f"{kind} has no {name}"
        if not isinstance(value, int) or value < 1:
            return f"{kind} has {name} {value!r} in its config.json"
    return None


def require_readable(config: Any, name: str = "the model") -> None:
    """Raise `UserError` that names the model where `unreadable` has a reason."""
    if reason := unreadable(config):
        raise _refused(name, reason)


def unreadable_cache(model: Any, geometry: Geometry) -> str | None:
    """Run two tokens, and say in what the cache is not that of its configuration's geometry; None if it is.

    On the meta device nothing is computed.

    Raises
    ------
    Exception
        Whatever the model raises.
    """
    kind = f"model type {model.config.model_type!r}"
    tokens = 2
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    mode = model.training
    try:
        with torch.no_grad():
            output = model.base_model.eval()(input_ids=ids, use_cache=True)
    finally:
        model.base_model.train(mode)
    cache = output.get("past_key_values")
    if cache is None:
        return f"{kind} returns no KV cache"
    if not isinstance(cache, DynamicCache) or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return f"{kind} returns a cache of another kind ({type(cache).__name__})"
    expected = (1, geometry.kv_heads, tokens, geometry.head_dim)
    if len(cache.layers) != geometry.layers:
        return f"{kind} keeps KV of {len(cache.layers)} of {geometry.layers} layers"
    for layer in cache.layers:
        for name, tensor in (("keys", layer.keys), ("values", layer.values)):
            if tensor is None or tuple(tensor.shape) != expected:
                shape = None if tensor is None else tuple(tensor.shape)
                return (
                    f"{kind} keeps {name} of shape {shape} for {tokens} tokens, where its config.json says {expected}"
                )
    return None


def require_readable_cache(model: Any, name: str, geometry: Geometry) -> bool:
    """Raise `UserError` where `unreadable_cache` has a reason; whether a model on the meta device let itself be run."""
    try:
        reason = unreadable_cache(model, geometry)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code may raise anything, and without data some of it must
        if model.device.type == "meta":
            return False
        reason = f"model type {model.config.model_type!r} cannot run over two tokens ({first_line(error)})"
    if reason:
        raise _refused(name, reason)
    return True


def _refused(name: str, reason: str) -> UserError:
    return UserError(f"KV of {name} cannot be read: {reason}; {READS}: choose another model")
