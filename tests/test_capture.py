"""Keys and values come out of the model as they are defined, not as they happen to lie in a cache."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kava.errors import UserError
from kava.kv import Geometry
from kava.models.capture import capture, geometry, observed_attention

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}


def projected(model: torch.nn.Module, module: str, ids: torch.Tensor) -> torch.Tensor:
    """Output of a module of every layer, `[B, L, H, T, D]`."""
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.get_submodule(module).register_forward_hook(lambda _m, _i, output: outputs.append(output))
        for layer in model.model.layers
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    shape = geometry(model.config)
    return torch.stack(
        [output.reshape(*ids.shape, shape.kv_heads, shape.head_dim).transpose(1, 2) for output in outputs], dim=1
    )


@pytest.mark.parametrize(
    ("family", "module", "changes"),
    [
        ("qwen2", "k_proj", {}),
        ("llama", "k_proj", {}),
        ("mistral", "k_proj", {}),
        ("qwen3", "k_norm", {}),
        ("llama", "k_proj", {"rope_parameters": YARN}),
    ],
)
@torch.inference_mode()
def test_unrotated_keys_equal_the_models_own_projection(family: str, module: str, changes: dict) -> None:
    model = tiny_model(family, **changes)
    ids = torch.randint(3, 61, (2, 33))
    (keys, values), _ = capture(model, ids, torch.ones_like(ids))
    torch.testing.assert_close(keys, projected(model, module, ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(values, projected(model, "v_proj", ids), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_unrotated_keys_of_trained_weights_equal_k_proj(tinystories) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tinystories, dtype=torch.float32).eval()
    ids = torch.randint(3, 2000, (2, 300))
    (keys, _), _ = capture(model, ids, torch.ones_like(ids))
    torch.testing.assert_close(keys, projected(model, "k_proj", ids), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_rotated_keys_differ_from_unrotated_ones_and_equal_the_cache() -> None:
    model = tiny_model("llama")
    ids = torch.randint(3, 61, (1, 20))
    (rotated, _), _ = capture(model, ids, torch.ones_like(ids), keys="post_rope")
    (unrotated, _), _ = capture(model, ids, torch.ones_like(ids))
    cache = model(input_ids=ids, use_cache=True).past_key_values
    torch.testing.assert_close(rotated[:, 0], cache.layers[0].keys, atol=1e-6, rtol=0)
    assert (rotated - unrotated).abs().max() > 0.1
    torch.testing.assert_close(rotated[..., 0, :], unrotated[..., 0, :])  # position 0 is not turned


@torch.inference_mode()
def test_gpt2_keys_are_kept_as_they_are() -> None:
    model = tiny_model("gpt2")
    ids = torch.randint(3, 61, (2, 9))
    (keys, _), _ = capture(model, ids, torch.ones_like(ids))
    assert keys.shape == (2, 3, 4, 9, 8)
    assert torch.equal(keys, capture(model, ids, torch.ones_like(ids), keys="post_rope")[0].keys)


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3", "mistral"])
@torch.inference_mode()
def test_kv_heads_are_counted_not_attention_heads(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(3, 61, (1, 5))
    (keys, values), hidden = capture(model, ids, torch.ones_like(ids))
    assert keys.shape == values.shape == (1, 3, 2, 5, 8)
    assert hidden.shape == (1, 5, 32)
    assert geometry(model.config).to_dict() == {"layers": 3, "kv_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("family", "changes", "kv_heads", "head_dim"),
    [
        # No head_dim in the configuration: the width is shared among attention heads, not KV heads.
        ("qwen2", {"num_key_value_heads": 2}, 2, 8),
        ("llama", {"num_key_value_heads": 1}, 1, 8),
        ("mistral", {"num_key_value_heads": 4}, 4, 8),
        # No KV heads in it: as many as attention heads.
        ("llama", {}, 4, 8),
        # A head dim of its own, which 4 heads do not make the width of.
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 16}, 2, 16),
        ("mistral", {"num_key_value_heads": 1, "head_dim": 4}, 1, 4),
        # Other names, and no grouping.
        ("gpt2", {}, 4, 8),
    ],
)
def test_geometry_is_read_from_the_configuration(family: str, changes: dict, kv_heads: int, head_dim: int) -> None:
    from transformers import AutoConfig

    names = ("n_layer", "n_head", "n_embd")
    if family != "gpt2":
        names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    config = AutoConfig.for_model(family, **dict(zip(names, (3, 4, 32), strict=True)), **changes)
    assert geometry(config) == Geometry(3, kv_heads, head_dim)


@pytest.mark.parametrize(("family", "changes"), [("qwen3", {"head_dim": 16}), ("llama", {"num_key_value_heads": 1})])
@torch.inference_mode()
def test_captured_kv_has_the_geometry_of_the_configuration(family: str, changes: dict) -> None:
    model = tiny_model(family, **changes)
    ids = torch.randint(3, 61, (2, 5))
    (keys, values), _ = capture(model, ids, torch.ones_like(ids))
    shape = geometry(model.config)
    assert keys.shape == values.shape == (2, shape.layers, shape.kv_heads, 5, shape.head_dim)


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3", "gpt2"])
@torch.inference_mode()
def test_batched_capture_equals_one_by_one(family: str) -> None:
    model = tiny_model(family).double()  # in double, what remains is a wrong mask or position, not rounding
    lengths = [5, 12, 20, 3]
    ids = torch.zeros(4, 20, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 61, (length,))
        mask[row, :length] = 1
    batched, _ = capture(model, ids, mask)
    for row, length in enumerate(lengths):
        alone, _ = capture(model, ids[row : row + 1, :length], mask[row : row + 1, :length])
        for together, single in zip(batched, alone, strict=True):
            torch.testing.assert_close(together[row, :, :, :length], single[0], atol=1e-6, rtol=0)


def test_unknown_family_is_refused_before_rope_and_served_after() -> None:
    model = tiny_model("gpt_neox", num_key_value_heads=4)
    ids = torch.randint(3, 61, (1, 4))
    with pytest.raises(UserError, match=r"gpt_neox.*kv\.keys: post_rope"):
        capture(model, ids, torch.ones_like(ids))
    assert capture(model, ids, torch.ones_like(ids), keys="post_rope")[0].keys.shape[-2] == 4


def padded_batch(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, 61, mask.shape) * mask, mask


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gpt2"]


@pytest.mark.parametrize("lengths", [[5, 20, 3], [20, 20]])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_observed_forward_equals_the_unobserved_one_bit_for_bit(family: str, lengths: list[int]) -> None:
    model = tiny_model(family)
    ids, mask = padded_batch(lengths)
    layers: list[int] = []
    (keys, values), hidden = capture(model, ids, mask, keys="post_rope")
    with observed_attention(model, lambda layer, *_: layers.append(layer)):
        (observed_keys, observed_values), observed_hidden = capture(model, ids, mask, keys="post_rope")
    assert layers == [0, 1, 2]
    assert torch.equal(observed_keys, keys)
    assert torch.equal(observed_values, values)
    assert torch.equal(observed_hidden, hidden)
    again, _ = capture(model, ids, mask, keys="post_rope")
    assert len(layers) == 3, "the observer is still called"
    assert torch.equal(again.keys, keys)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_observed_queries_and_keys_give_the_models_own_attention(family: str) -> None:
    model = tiny_model(family)
    lengths = [5, 20, 3]
    ids, mask = padded_batch(lengths)
    observed = []
    with observed_attention(model, lambda *of_layer: observed.append(of_layer)):
        (keys, _), _ = capture(model, ids, mask, keys="post_rope")
    model.set_attn_implementation("eager")
    eager = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    heads = model.config.num_attention_heads
    for layer, query, key, scaling in observed:
        assert torch.equal(key, keys[:, layer])
        assert query.shape == (3, heads, 20, 8)
        # Attention head a reads KV head a // group.
        logits = query @ key.repeat_interleave(heads // key.shape[1], dim=1).mT * scaling
        future = torch.ones(20, 20, dtype=torch.bool).triu(1)
        probabilities = logits.masked_fill(future, -torch.inf).softmax(-1)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(probabilities[row, :, :length], eager[layer][row, :, :length], atol=1e-5, rtol=0)


def test_former_attention_is_back_after_an_error() -> None:
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="stop"), observed_attention(model, lambda *_: None):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    with observed_attention(model, lambda *_: None):
        pass


def test_observing_beyond_a_sliding_window_is_refused() -> None:
    model = tiny_model("mistral", sliding_window=8)
    ids = torch.randint(3, 61, (1, 9))
    with observed_attention(model, lambda *_: None):
        capture(model, ids[:, :7], torch.ones_like(ids[:, :7]))
        with pytest.raises(UserError, match="8 tokens and an example has 9"):
            capture(model, ids, torch.ones_like(ids))


@torch.inference_mode()
def test_a_family_that_repeats_its_kv_before_attention_shows_each_head_once() -> None:
    model, seen = tiny_model("qwen2"), []
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    assert heads > kv_heads > 1
    queries, keys, values = (torch.randn(2, n, 5, 8) for n in (heads, kv_heads, kv_heads))
    again = heads // kv_heads
    repeated = [tensor.repeat_interleave(again, dim=1) for tensor in (keys, values)]
    module = SimpleNamespace(layer_idx=1, num_key_value_groups=1, is_causal=True, training=False)
    with observed_attention(model, lambda *of_layer: seen.append(of_layer)):
        attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
        attend(module, queries, *repeated, None, scaling=0.5)
    ((layer, _, shown, scaling),) = seen
    assert (layer, scaling) == (1, 0.5)
    assert torch.equal(shown, keys)
