"""KV of every token, where attention looks through a sliding window or a chunk shorter than the example."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from store_fixtures import fill_store
from torch import Tensor, nn
from training_fixtures import STRUCTURED, TEACHER, FakeStore, batches
from transformers import DynamicCache

from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.errors import UserError
from kava.models.capture import ROTATE_HALF, capture, capture_with_hidden, geometry, observed_attention, unrotate
from kava.store.reader import StoreReader
from kava.training.model import DistillationModel

WINDOW, TOKENS = 8, 20
FULL_SLIDING = ["full_attention", "sliding_attention", "full_attention"]
SLIDING_FULL = ["sliding_attention", "full_attention", "sliding_attention"]
# Family → settings by which some layers or all attend to the last `WINDOW` tokens.
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": FULL_SLIDING},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": SLIDING_FULL},
    "phi3": {"sliding_window": WINDOW, "pad_token_id": 0},
    "starcoder2": {"sliding_window": WINDOW},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": FULL_SLIDING, "pad_token_id": 0},
    "olmo3": {"sliding_window": WINDOW},
}
CHUNKED = {
    "attention_chunk_size": WINDOW, "intermediate_size_mlp": 48, "num_local_experts": 2,
    "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
}  # fmt: skip
OF_A_WINDOW = ("mistral", "qwen2", "qwen3")  # families whose keys are known before RoPE
EAGER = "gemma2"  # its scores are capped, which SDPA cannot


def batch() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, 15:] = 0
    return torch.randint(3, 61, mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask


def outputs(model: Any, of: str) -> list[Tensor]:
    """What a module of each layer gives in a plain forward, `[B, H, T, D]`, split into KV heads."""
    ids, mask = batch()
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(output)

    hooks = [m.register_forward_hook(keep) for name, m in model.named_modules() if name.endswith(of)]
    model(input_ids=ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    dim = geometry(model.config).head_dim
    return [x if x.dim() == 4 else x.unflatten(-1, (-1, dim)).transpose(1, 2) for x in found]


def by_hand(model: Any, family: str) -> tuple[Tensor, Tensor]:
    """Keys before RoPE and values `[B, L, H, T, D]` from the projections of the model, and what is behind them."""
    if family == "phi3":
        shape = geometry(model.config)
        heads = model.config.num_attention_heads
        fused = outputs(model, "qkv_proj")
        split = [x.split([heads, shape.kv_heads, shape.kv_heads], dim=1) for x in fused]
        return torch.stack([x[1] for x in split], 1), torch.stack([x[2] for x in split], 1)
    if family in ("qwen3", "gemma3_text"):
        keys = outputs(model, "k_norm")
        if family == "qwen3":
            keys = [x.transpose(1, 2) for x in keys]
    elif family == "olmo3":
        keys = outputs(model, "k_norm")
    else:
        keys = outputs(model, "k_proj")
    return torch.stack(keys, 1), torch.stack(outputs(model, "v_proj"), 1)


def rotated(keys_BLHTD: Tensor, theta: float) -> Tensor:
    """RoPE of positions 0 … T−1 in float64: the pair (d, d + D/2) turns by t / θ^(2d/D)."""
    half = keys_BLHTD.shape[-1] // 2
    angle = torch.arange(keys_BLHTD.shape[-2])[:, None] / theta ** (torch.arange(half, dtype=torch.float64) / half)
    first, second = keys_BLHTD.double().split(half, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


@pytest.mark.parametrize("family", WINDOWED)
@torch.inference_mode()
def test_kv_of_all_tokens_is_that_of_the_projections(family: str) -> None:
    """In float32, after RoPE computed here, and before it where the family's is known."""
    model = tiny_model(family, **WINDOWED[family])
    ids, mask = batch()
    expected_keys, expected_values = by_hand(model, family)
    (keys, values), hidden = capture(model, ids, mask, "post_rope")
    real = mask.bool()[:, None, None, :, None]
    ropes = model.config.rope_parameters
    for layer in range(3):
        own = ropes if "rope_theta" in ropes else ropes[model.config.layer_types[layer]]
        turned = rotated(expected_keys[:, layer : layer + 1], own["rope_theta"])
        if family == "smollm3" and not model.config.no_rope_layers[layer]:
            turned = expected_keys[:, layer : layer + 1].double()
        found = torch.where(real, keys[:, layer : layer + 1].double(), 0)
        torch.testing.assert_close(found, torch.where(real, turned, 0), atol=1e-5, rtol=0)
    assert torch.equal(values, expected_values)
    # The window is the model's own: what comes out is what a plain forward gives.
    plain = model.base_model(input_ids=ids, attention_mask=mask, use_cache=True)
    assert torch.equal(hidden, plain.last_hidden_state)
    assert min(layer.keys.shape[-2] for layer in plain.past_key_values.layers) == WINDOW - 1
    if family in ROTATE_HALF:
        before = capture(model, ids, mask)[0].keys
        torch.testing.assert_close(torch.where(real, before, 0), torch.where(real, expected_keys, 0), atol=1e-5, rtol=0)
        assert torch.equal(before, unrotate(model, keys))


@torch.inference_mode()
def test_chunked_attention_keeps_all_tokens_too() -> None:
    model = tiny_model("llama4_text", **CHUNKED)
    ids, mask = batch()
    (keys, values), hidden = capture(model, ids, mask, "post_rope")
    assert keys.shape == values.shape == (2, 3, 2, TOKENS, 8)
    plain = model.model(input_ids=ids, attention_mask=mask, use_cache=True)
    assert torch.equal(hidden, plain.last_hidden_state)
    assert [layer.keys.shape[-2] for layer in plain.past_key_values.layers] == [WINDOW - 1, TOKENS, WINDOW - 1]
    assert torch.equal(values, torch.stack(outputs(model, "v_proj"), 1))
    with pytest.raises(UserError, match="8 tokens and an example has 20"), observed_attention(model, lambda *_: None):
        capture(model, ids, mask, "post_rope")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
@torch.inference_mode()
def test_kv_without_a_window_is_that_of_the_models_own_cache_bit_for_bit(family: str) -> None:
    model = tiny_model(family, **({"sliding_window": 64} if family == "mistral" else {})).bfloat16()
    ids, mask = batch()
    (keys, values), hidden = capture(model, ids, mask, "post_rope")
    plain = model.base_model(input_ids=ids, attention_mask=mask, use_cache=True)
    layers = plain.past_key_values.layers
    assert torch.equal(keys, torch.stack([layer.keys for layer in layers], 1))
    assert torch.equal(values, torch.stack([layer.values for layer in layers], 1))
    assert torch.equal(hidden, plain.last_hidden_state)


@pytest.mark.parametrize("family", OF_A_WINDOW)
def test_a_store_holds_examples_longer_than_the_window(family: str, tmp_path: Path) -> None:
    teacher = tiny_model(family, **WINDOWED[family])
    ids = [np.random.default_rng(n).integers(3, 61, n) for n in (TOKENS, 30, 12)]
    fill_store(tmp_path, teacher, ids, {"kind": "bf16"})
    store = StoreReader(tmp_path / "manifest.json", torch.device("cpu"))
    for example, of_example in enumerate(ids):
        row = torch.from_numpy(of_example)[None]
        with torch.inference_mode():
            (keys, _), _ = capture(teacher, row, torch.ones_like(row))
        stored = store.read("train", example).kv.keys.float()
        torch.testing.assert_close(stored, keys[0].permute(2, 0, 1, 3), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("family", [*OF_A_WINDOW, "gemma3_text", "starcoder2"])
def test_a_student_with_a_window_gets_the_same_gradients_checkpointed_or_not(family: str) -> None:
    settings = Arm(aligner=STRUCTURED, train_projector=True, kv_until=1.0)
    parts, gradients = [], []
    for checkpointed in (False, True):
        student = tiny_model(family, **WINDOWED[family])
        torch.manual_seed(0)
        projector = Projector(STRUCTURED, TEACHER, geometry(student.config), settings.loss.center)
        projector.set_teacher_statistics(FakeStore.mean, FakeStore.std)
        model = DistillationModel(student, projector, settings, True, "post_rope", None)
        if checkpointed:
            student.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        output = model(**batches().collate([0, 1, 2]))
        output["loss"].backward()
        parts.append(output)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(parts[0], parts[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    first = next(name for name in gradients[0] if "layers.0" in name and name.endswith("v_proj.weight"))
    assert gradients[0][first].abs().sum() > 0


@torch.inference_mode()
def test_hidden_states_come_with_the_kv_of_all_tokens() -> None:
    model = tiny_model("mistral", **WINDOWED["mistral"])
    (keys, _), hidden = capture_with_hidden(model, *batch())
    assert keys.shape[-2] == TOKENS
    assert len(hidden) == 4


def test_attention_that_cannot_be_read_along_is_one_sentence() -> None:
    model = tiny_model(EAGER, **WINDOWED[EAGER])
    told = pytest.raises(UserError, match=r"'gemma2' attend in a way of their own \(eager\)")
    with told, observed_attention(model, lambda *_: None):
        pass
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(UserError, match="gradient_checkpointing need that"):
        capture(model, *batch(), "post_rope")


def test_answers_of_a_model_with_a_window_are_those_of_a_cache_that_keeps_all() -> None:
    """The harness generates with the model's own cache, which forgets only what nobody attends to any more."""
    model = tiny_model("mistral", **WINDOWED["mistral"])
    ids, mask = batch()
    ids, mask = ids.flip(1), mask.flip(1)  # padded on the left
    options = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**options), model.generate(**options, past_key_values=DynamicCache()))
