"""A teacher whose weights are read layer by layer gives the store that one in memory gives, byte for byte."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from store_fixtures import BF16, INT8, files, fill_store, some_ids

from kava.config.models import Teacher
from kava.errors import UserError
from kava.evaluation.likelihood import score_answers
from kava.kv import pad_ids
from kava.models.capture import capture
from kava.models.cut import layers_of
from kava.models.load import second_model_allowed
from kava.models.load_streamed import stream_teacher
from kava.models.placement import place
from kava.models.streamed import StreamedModel

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
EVERY_SIGNAL: dict[str, Any] = {
    "importance": {"kind": "rkv"},
    "hidden_states": True,
    "token_hidden_states": [0, 2],
    "topk_logits": 5,
}


def teacher_of(folder: Path, placement: str = "streamed", **changes: Any) -> Teacher:
    settings = {"quantization": "none", "dtype": "float32", "wave_tokens": 128} | changes
    return Teacher(model=str(folder), placement=placement, **settings)


def digests(folder: Path) -> dict[str, Any]:
    """Of every file, without the time at which the store was made."""
    found: dict[str, Any] = {name: sha256(content).hexdigest() for name, content in files(folder).items()}
    manifest = json.loads((folder / "manifest.json").read_text())
    return found | {"manifest.json": {name: x for name, x in manifest.items() if name != "created"}}


def both_stores(
    tmp_path: Path, model: Path, codec: dict[str, Any], how: dict[str, Any], **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    found = []
    for placement in ("resident", "streamed"):
        settings = {"shard_tokens": 64, "batch_tokens": 64} | changes
        placed = place(teacher_of(model, placement, **how), CPU, head="signals" in changes)
        fill_store(tmp_path / placement / "store", placed, some_ids(), codec, **settings)
        found.append(digests(tmp_path / placement / "store"))
        del placed
    return found[0], found[1]


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param, tie_word_embeddings=request.param in ("llama", "gpt2")).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_every_family_gives_the_same_store(tmp_path: Path, saved: Path) -> None:
    """Codes, R-KV scores, every signal; layers that are tied to the head, and not."""
    resident, streamed = both_stores(tmp_path, saved, INT8, {"dtype": "bfloat16"}, signals=EVERY_SIGNAL)
    assert resident == streamed
    assert any("signals/topk_ids" in name for name in streamed)


@pytest.mark.parametrize("how", [{"quantization": "nf4"}, {"quantization": "int8"}], ids=["nf4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantised_weights_are_the_same(tmp_path: Path, family: str, how: dict[str, Any]) -> None:
    tiny_model(family).save_pretrained(tmp_path / "m")
    resident, streamed = both_stores(tmp_path, tmp_path / "m", BF16, how | {"dtype": "bfloat16"})
    assert resident == streamed


@pytest.mark.parametrize("keys", ["pre_rope", "post_rope"])
@pytest.mark.parametrize("codec", ["int4", "transform"])
def test_every_codec_gives_the_same_store(tmp_path: Path, llama: Path, codec: str, keys: str) -> None:
    resident, streamed = both_stores(tmp_path, llama, {"kind": codec}, {}, keys=keys)
    assert resident == streamed


def test_a_selection_is_the_same(tmp_path: Path, llama: Path) -> None:
    select = {"kind": "rkv", "budget": 4}
    resident, streamed = both_stores(tmp_path, llama, BF16, {}, select=select)
    assert resident == streamed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_shards_and_in_other_dtypes_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model("qwen2", tie_word_embeddings=False).to(dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert (tmp_path / "m/model.safetensors.index.json").is_file()
    resident, streamed = both_stores(tmp_path, tmp_path / "m", BF16, {}, signals=EVERY_SIGNAL)
    assert resident == streamed


def test_names_without_the_prefix_of_the_body_are_read(tmp_path: Path, llama: Path) -> None:
    path = llama / "model.safetensors"
    save_file({name.removeprefix("model."): x for name, x in load_file(path).items()}, path, {"format": "pt"})
    resident, streamed = both_stores(tmp_path, llama, BF16, {})
    assert resident == streamed


def test_a_head_that_is_stored_although_it_is_tied_counts(tmp_path: Path) -> None:
    """As transformers has it: two that differ are not tied."""
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": 2 * weights["model.embed_tokens.weight"]}, path, {"format": "pt"})
    resident, streamed = both_stores(tmp_path, tmp_path / "m", BF16, {}, signals={"topk_logits": 5})
    assert resident == streamed


def streamed_model(folder: Path, **changes: Any) -> StreamedModel:
    return stream_teacher(teacher_of(folder, **changes), CPU, head=False)


@torch.inference_mode()
def run(streamed: StreamedModel, lengths: list[int]) -> list[Any]:
    def forward(length: int) -> Any:
        ids, mask = pad_ids([np.arange(3, 3 + length)])
        return capture(streamed.model, ids, mask, offload=True)

    return list(streamed.forwards([lambda length=length: forward(length) for length in lengths]))  # type: ignore[misc]


def test_one_layer_is_in_memory_at_a_time_and_is_read_once(llama: Path) -> None:
    streamed = streamed_model(llama)
    _, layers = layers_of(streamed.model)
    seen: list[list[int]] = []

    def look(*_: Any) -> None:
        seen.append([n for n, each in enumerate(layers) if not next(each.parameters()).is_meta])

    for layer in layers:
        layer.register_forward_hook(look)
    run(streamed, [5, 9, 12, 7])
    assert seen == [[0]] * 4 + [[1]] * 4 + [[2]] * 4
    heavy = [streamed.model.get_input_embeddings(), *layers]
    assert streamed.read_bytes == sum(4 * x.numel() for module in heavy for x in module.parameters())
    assert all(x.is_meta for module in heavy for x in module.parameters())


def test_results_come_in_the_order_of_the_calls(llama: Path) -> None:
    streamed = streamed_model(llama)
    alone = [run(streamed, [length])[0] for length in (5, 9, 12)]
    together = run(streamed, [5, 9, 12])
    for (kv, hidden), (other, of_other) in zip(alone, together, strict=True):
        assert torch.equal(kv.keys, other.keys)
        assert torch.equal(kv.values, other.values)
        assert torch.equal(hidden, of_other)


def damaged(llama: Path, name: str) -> None:
    path = llama / "model.safetensors"
    save_file({key: x for key, x in load_file(path).items() if key != name}, path, {"format": "pt"})


def test_a_missing_weight_is_named(llama: Path) -> None:
    damaged(llama, "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj.weight"):
        streamed_model(llama)


def test_a_truncated_file_is_named(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        streamed_model(llama)


def test_a_family_that_was_not_shown_is_refused(tmp_path: Path) -> None:
    tiny_model("olmo2").save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"'olmo2' were not shown .* set teacher.placement: resident"):
        streamed_model(tmp_path / "m")


def test_the_next_wave_goes_on_after_one_that_failed(tmp_path: Path, llama: Path) -> None:
    """In any layer of any wave; shards that were finished stay, and the store ends in the same bytes."""
    whole = tmp_path / "whole" / "store"
    settings = {"shard_tokens": 64, "batch_tokens": 64}
    fill_store(whole, place(teacher_of(llama), CPU, head=False), some_ids(), BF16, **settings)
    for after in (1, 4, 11, 20):
        with second_model_allowed():
            placed = place(teacher_of(llama), CPU, head=False)
        left = [None] * after

        def fail_in_the_end(*_: Any, left: list[None] = left) -> None:
            if not left:
                raise RuntimeError("a layer failed")
            left.pop()

        for layer in layers_of(placed.model)[1]:
            layer.register_forward_hook(fail_in_the_end)
        folder = tmp_path / str(after) / "store"
        with pytest.raises(RuntimeError):
            fill_store(folder, placed, some_ids(), BF16, **settings)
        with second_model_allowed():  # the failed one is still in the traceback
            again = place(teacher_of(llama), CPU, head=False)
        fill_store(folder, again, some_ids(), BF16, **settings)
        assert digests(folder) == digests(whole)


def test_gold_answers_are_scored_alike(llama: Path) -> None:
    """In waves of whole batches, with the head read once for each."""
    ids = some_ids()
    segments = [np.repeat([0, 1, 2], [5, len(x) - 9, 4]) for x in ids]
    scores = {}
    for placement in ("resident", "streamed"):
        placed = place(teacher_of(llama, placement, wave_tokens=64), CPU, head=True)
        scores[placement] = score_answers(placed, ids, segments, batch_size=2)
        read = placed.cost().get("weights_read_bytes")
        del placed
    for one, other in zip(*scores.values(), strict=True):
        assert one.nll == other.nll
        assert np.array_equal(one.likeliest, other.likeliest)
    whole = sum(x.numel() * 4 for x in load_file(llama / "model.safetensors").values())
    assert read is not None
    assert read > 3 * whole, "so few tokens do not wait for one another"
