"""Keys and values come out of the model as they are defined, not as they happen to lie in a cache."""

import pytest
import torch
from conftest import tiny_model

from kava.cache.capture import capture, geometry
from kava.errors import UserError

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
