"""Keys and values of a Hugging Face model as plain tensors; nothing else touches its cache or attention.

Shape suffixes: B batch, L layers, H KV heads (never attention heads), T tokens, D head dim.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kava.errors import UserError
from kava.kv import Geometry, KeysValues
from kava.models.families import require_readable

# Families whose rotary embedding turns the pair (d, d + rotary/2), as `rotate_half` does.
ROTATE_HALF = ("llama", "mistral", "qwen2", "qwen3")
NO_ROPE = ("gpt2",)
# Setting of transformers; false leaves its last hidden states as the last block gives them.
BEFORE_NORM = "tie_last_hidden_states"
# Name under which transformers finds the observed attention.
OBSERVED = "kava_observed"

Observer = Callable[[int, Tensor, Tensor, float], object]


class _Attention(NamedTuple):
    """What an attention layer reads: queries `[B, Ha, T, D]`, keys and values `[B, H, T, D]`, and how."""

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    window: int | None


def geometry(config: Any) -> Geometry:
    """Read the KV geometry from a `transformers` configuration; `UserError` if KAVA cannot read its model's KV."""
    if config.model_type not in ROTATE_HALF + NO_ROPE:
        require_readable(config)
    heads = config.num_attention_heads
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def capture(
    model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor, keys: str = "pre_rope", offload: bool = False
) -> tuple[KeysValues, Tensor]:
    """Run the body of a model (without its head) and return its KV and last hidden states.

    Gradients flow through the result if they are enabled. Sequences are padded on the right. KV is that of every
    token, also where the model attends through a sliding window shorter than the sequence. With gradient
    checkpointing the result is the same, read where attention is computed.

    Parameters
    ----------
    model
        A causal language model of `transformers`.
    input_ids_BT, attention_mask_BT
        Token ids and 1 for real tokens.
    keys
        `pre_rope` undoes the rotary embedding; `post_rope` returns what the cache holds.
    offload
        Bring each layer's KV to the CPU as soon as it is there, where the result then lies.

    Returns
    -------
    KeysValues, Tensor
        Keys and values in the model's dtype (keys rounded once after un-rotation in fp32), and the last hidden
        states `[B, T, width]`.

    Raises
    ------
    UserError
        `pre_rope` for a family whose rotary layout is not known here.
    """
    captured, output = _forward(model, input_ids_BT, attention_mask_BT, keys, offload)
    return captured, output.last_hidden_state


def capture_with_hidden(
    model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor, keys: str = "pre_rope", offload: bool = False
) -> tuple[KeysValues, tuple[Tensor, ...]]:
    """As `capture`, with the hidden states of all layers, L + 1 times `[B, T, width]`, embeddings first."""
    captured, output = _forward(model, input_ids_BT, attention_mask_BT, keys, offload, output_hidden_states=True)
    return captured, output.hidden_states


def capture_with_blocks(
    model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor, keys: str = "pre_rope", offload: bool = False
) -> tuple[KeysValues, tuple[Tensor, ...], Tensor]:
    """As `capture`, with the embeddings and what each block gives, L + 1 times `[B, T, width]`, and last hidden states.

    transformers' own last hidden states have passed the final norm, the others have not. Here no block's has: the last
    block of a student may be any block of its teacher, and the norm would stand between them.

    Raises
    ------
    UserError
        The family's code keeps the last block's output to itself; see also `capture`.
    """
    with blocks_before_norm(model):
        captured, output = _forward(model, input_ids_BT, attention_mask_BT, keys, offload, output_hidden_states=True)
    if output.hidden_states[-1] is output.last_hidden_state:
        raise UserError(
            f"models of type {model.config.model_type!r} show what the final norm makes of their last block, and not "
            "what the block gives; do without token_hidden_states and the loss hidden, or choose another family"
        )
    return captured, output.hidden_states, output.last_hidden_state


@contextmanager
def blocks_before_norm(model: Any) -> Iterator[None]:
    """While active, transformers gives the hidden states behind the last block as the block does; may be nested."""
    config = _body(model).config
    former = vars(config).get(BEFORE_NORM)
    setattr(config, BEFORE_NORM, False)
    try:
        yield
    finally:
        if former is None:
            delattr(config, BEFORE_NORM)
        else:
            setattr(config, BEFORE_NORM, former)


def _forward(
    model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor, keys: str, offload: bool, **options: Any
) -> tuple[KeysValues, Any]:
    from transformers import DynamicCache

    from kava.models.offload import OffloadedCache

    inputs, body = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT} | options, _body(model)
    layers: list[Any] = []
    stored = (lambda keys_BHTD: unrotate(model, keys_BHTD)) if keys == "pre_rope" else None
    if model.training and model.is_activation_checkpointing:
        # Checkpointed layers get no cache: it would be filled once more when they are computed again.
        with _attention_shown(model, layers.append):
            output = body(use_cache=False, **inputs)
    else:
        # A cache that knows nothing of the model keeps every token; the model's own forgets what is behind a window.
        cache = OffloadedCache(stored) if offload else DynamicCache()
        output = body(use_cache=True, past_key_values=cache, **inputs)
        layers = output.past_key_values.layers
    keys_BLHTD = torch.stack([layer.keys for layer in layers], dim=1)
    values_BLHTD = torch.stack([layer.values for layer in layers], dim=1)
    tokens = input_ids_BT.shape[1]
    assert len(layers) == geometry(model.config).layers, f"{len(layers)} layers attended"
    assert keys_BLHTD.shape[-2] == tokens, f"cache holds {keys_BLHTD.shape[-2]} of {tokens} tokens"
    if stored and not offload:
        keys_BLHTD = stored(keys_BLHTD)
    return KeysValues(keys_BLHTD, values_BLHTD), output


def _body(model: Any) -> Any:
    # Llama 4's text model names its body in a way that transformers does not find.
    return model.base_model if model.base_model is not model else model.model


@contextmanager
def observed_attention(model: Any, observe: Observer) -> Iterator[None]:
    """While active, every attention layer shows its queries and keys; the forward stays that of SDPA, bit for bit.

    Parameters
    ----------
    model
        A causal language model of `transformers` that attends by SDPA (the default).
    observe
        Called once per layer and forward with the layer's index, the queries `[B, Ha, T, D]` (Ha attention heads) and
        the keys `[B, H, T, D]` of the real forward, both after RoPE, and the factor on their product before the
        softmax. Attention head a reads KV head `a // (Ha / H)`.

    Raises
    ------
    UserError
        The model attends by no SDPA; or, from the forward: a sequence longer than the model's sliding window or chunk,
        since queries and keys alone would then show attention that never was.
    """

    def show(seen: _Attention) -> None:
        tokens = seen.queries.shape[2]
        if seen.window is not None and tokens > seen.window:
            raise UserError(
                f"attention reaches back {seen.window} tokens and an example has {tokens}; scores and the loss "
                f"structural need attention over the whole example: set max_length to at most {seen.window}, or do "
                "without them"
            )
        observe(seen.layer, seen.queries, seen.keys, seen.scaling)

    with _attention_shown(model, show):
        yield


@contextmanager
def _attention_shown(model: Any, show: Callable[[_Attention], object]) -> Iterator[None]:
    """Show what every attention layer reads; may be nested.

    What backward computes again after the context has ended is shown to nobody.
    """
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    former = model.config._attn_implementation
    if former not in ("sdpa", OBSERVED):
        raise UserError(
            f"models of type {model.config.model_type!r} attend in a way of their own ({former}) that cannot be read "
            "along; R-KV scores, the loss structural and gradient_checkpointing need that: do without them, or choose "
            "another family"
        )
    attend = ALL_ATTENTION_FUNCTIONS[former]
    kv_heads = geometry(model.config).kv_heads
    # Attention within chunks is a matter of masks alone, so that only the configuration says so.
    kinds = enumerate(getattr(model.config, "layer_types", None) or [])
    chunks = {layer: model.config.attention_chunk_size for layer, kind in kinds if kind == "chunked_attention"}

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        # Every n-th head undoes `repeat_kv`, where a family has applied it already.
        own = slice(None, None, key.shape[1] // kv_heads)
        window = options.get("sliding_window") or chunks.get(module.layer_idx)
        show(_Attention(module.layer_idx, query, key[:, own], value[:, own], options["scaling"], window))
        return attend(module, query, key, value, mask, **options)

    # A mask must be registered for all models: without one transformers would pass none, and padding would be read.
    AttentionMaskInterface.register(OBSERVED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    ALL_ATTENTION_FUNCTIONS[OBSERVED] = attention
    try:
        model.set_attn_implementation(OBSERVED)
        yield
    finally:
        model.set_attn_implementation(former)
        if former == OBSERVED:
            ALL_ATTENTION_FUNCTIONS[OBSERVED] = attend
        else:
            del ALL_ATTENTION_FUNCTIONS[OBSERVED]


def require_known_rotation(family: str) -> None:
    """Raise `UserError` for a model type whose RoPE, or that it has none, is not known here."""
    if family not in ROTATE_HALF + NO_ROPE:
        raise UserError(
            f"keys before RoPE are not known for model type {family!r} (known: {', '.join(ROTATE_HALF + NO_ROPE)}); "
            "set kv.keys: post_rope"
        )


def unrotate(model: Any, keys_BLHTD: Tensor) -> Tensor:
    """Undo RoPE on keys at positions 0 … T−1, in fp32, with the model's own cos and sin.

    Dividing by cos² + sin² inverts the rotation exactly, whether cos and sin carry an attention scaling (YaRN) or
    the rounding of a low-precision model.
    """
    return _turned(model, keys_BLHTD, back=True)


def rotate(model: Any, keys_BLHTD: Tensor) -> Tensor:
    """Apply the model's RoPE to keys at positions 0 … T−1, in fp32; the inverse of `unrotate`."""
    return _turned(model, keys_BLHTD, back=False)


def _turned(model: Any, keys_BLHTD: Tensor, back: bool) -> Tensor:
    family = model.config.model_type
    require_known_rotation(family)
    if family in NO_ROPE:
        return keys_BLHTD
    positions = torch.arange(keys_BLHTD.shape[-2], device=keys_BLHTD.device)[None]
    cos, sin = (x.float() for x in model.base_model.rotary_emb(keys_BLHTD, positions))  # [1, T, rotary]
    rotary, half = cos.shape[-1], cos.shape[-1] // 2
    plain = keys_BLHTD[..., :rotary].float()
    quarter_turn = torch.cat((-plain[..., half:], plain[..., :half]), dim=-1)
    if back:
        turned = (plain * cos - quarter_turn * sin) / (cos.square() + sin.square())
    else:
        turned = plain * cos + quarter_turn * sin
    return torch.cat((turned.to(keys_BLHTD.dtype), keys_BLHTD[..., rotary:]), dim=-1)
