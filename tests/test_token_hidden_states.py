"""Hidden states of every token: those of the teacher's blocks, before the final norm, whatever else is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from job_fixtures import all_jobs, settings_of_a_run  # noqa: F401
from store_fixtures import BF16, CODECS_UNDER_TEST, GEOMETRY, INT8, files, fill_store, key, some_ids
from torch import Tensor, nn

from kava.config import Config
from kava.config.load import merge
from kava.errors import UserError
from kava.kv import pad_ids
from kava.models.capture import capture_with_blocks
from kava.models.placement import resident
from kava.store.contents import Contents
from kava.store.reader import StoreReader
from kava.store.writer import StoreWriter
from kava.teacher.extractor import Extractor

LAYERS = [0, 2]
SIGNALS = {"token_hidden_states": LAYERS}


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_model("qwen2", max_position_embeddings=128)


def block_outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """What each block adds up to, by hooks of torch's own; every one behind its own embeddings, for one example."""
    (blocks,) = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3]
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *given: found.append(given[-1])) for block in blocks]
    with torch.inference_mode():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [output[0] if isinstance(output, tuple) else output for output in found]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_blocks_output_has_not_passed_the_final_norm(family: str) -> None:
    model = tiny_model(family)
    before = model.config.to_dict()
    ids, mask = pad_ids(some_ids(lengths=[9, 6]))
    with torch.no_grad():
        _, states, last = capture_with_blocks(model, ids, mask)
        expected = model.base_model(ids, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(last, expected.last_hidden_state)
    assert len(states) == 4
    for ours, theirs in zip(states[:-1], expected.hidden_states[:-1], strict=True):
        assert torch.equal(ours, theirs)
    (norm,) = [m for name, m in model.base_model.named_children() if name in ("norm", "ln_f")]
    torch.testing.assert_close(norm(states[-1]), last)
    assert not torch.allclose(states[-1], last, atol=0.1)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("codec", CODECS_UNDER_TEST, ids=lambda codec: codec["kind"])
def test_they_are_those_of_an_example_run_alone(codec: dict[str, Any], teacher: Any, tmp_path: Path) -> None:
    signals = SIGNALS | {"hidden_states": True, "topk_logits": 5}
    fill_store(tmp_path, teacher, some_ids(), codec, signals=signals)
    store = StoreReader(tmp_path / "manifest.json")
    for example, x in enumerate(some_ids()):
        ids, _ = pad_ids([x])
        alone = block_outputs(teacher, ids)
        for layers in ([0, 2], [2, 0, 0]):
            found = store.token_hidden_states("train", example, layers)
            assert found.dtype == torch.bfloat16
            expected = torch.stack([alone[layer][0] for layer in layers], 1)
            # To the last bit of bfloat16, where batches of fp32 round otherwise by 1e-6.
            torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-5)
        with torch.inference_mode():
            output = teacher(ids, output_hidden_states=True)
        before_answer = torch.stack([layer[0, -5] for layer in output.hidden_states])
        torch.testing.assert_close(store.hidden_states("train", example).float(), before_answer, rtol=0.01, atol=0.01)
        assert torch.equal(store.topk_logits("train", example)[0].long(), output.logits[0, -5:-1].topk(5).indices)


def test_what_is_captured_of_a_batch_is_that_of_each_example_alone_in_fp32(teacher: Any) -> None:
    ids, mask = pad_ids(some_ids())
    with torch.inference_mode():
        _, states, _ = capture_with_blocks(teacher, ids, mask)
    for row, x in enumerate(some_ids()):
        for layer, alone in enumerate(block_outputs(teacher, pad_ids([x])[0])):
            torch.testing.assert_close(states[layer + 1][row, : len(x)], alone[0], rtol=1e-5, atol=1e-5)


def test_a_store_that_was_interrupted_or_damaged_becomes_the_same(teacher: Any, tmp_path: Path) -> None:
    fill_store(tmp_path / "whole" / "store", teacher, some_ids(), INT8, signals=SIGNALS)
    whole = files(tmp_path / "whole" / "store")

    other = tmp_path / "other" / "store"
    writer = _begun(other, teacher, stop_after=2)
    assert len(writer.pending()) > 0
    fill_store(other, teacher, some_ids(), INT8, signals=SIGNALS)
    assert files(other) == whole

    hidden = other / "store.zarr" / "train" / "signals" / "token_hidden" / "c" / "0" / "0" / "0"
    hidden.write_bytes(hidden.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"token_hidden.*truncated"):
        StoreReader(other / "manifest.json")
    (other / "manifest.json").unlink()
    fill_store(other, teacher, some_ids(), INT8, signals=SIGNALS)
    kept = {name: data for name, data in files(other).items() if not name.startswith("quarantine")}
    assert kept == whole
    assert list((other / "quarantine").rglob("token_hidden/c/0/0/0"))


def _begun(folder: Path, teacher: Any, stop_after: int) -> StoreWriter:
    """A store some of whose shards are written, as a killed run leaves it."""
    contents = Contents(key(INT8, signals=SIGNALS), GEOMETRY, 32)
    ids = {"train": some_ids(), "validation": some_ids()[:2]}
    of_tokens = {split: [np.repeat([0, 1, 2], [5, len(x) - 9, 4]) for x in rows] for split, rows in ids.items()}
    writer = StoreWriter(folder, contents, of_tokens)
    writer.open()
    extractor = Extractor(resident(teacher), contents, ids, of_tokens)
    for split, shard in writer.pending()[:stop_after]:
        writer.write_shard(split, shard, *extractor.shards([(split, shard)], writer.packings, writer.axes))
    return writer


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = tiny_model("qwen2", max_position_embeddings=128)
    torch.nn.init.constant_(broken.model.layers[2].mlp.down_proj.weight, float("inf"))
    with pytest.raises(UserError, match="hidden states are not finite"):
        fill_store(tmp_path, broken, some_ids(), INT8, signals=SIGNALS)


def test_a_layer_that_the_teacher_has_not_is_named_before_it_runs() -> None:
    with pytest.raises(UserError, match="names the teacher's layer 3, and it has 3, from 0 to 2"):
        Contents(key(BF16, signals={"token_hidden_states": [0, 3]}), GEOMETRY, 32)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"signals": {"token_hidden_states": [2, 0]}}, "in rising order"),
        ({"signals": {"token_hidden_states": [-1]}}, "greater than or equal to 0"),
        ({"signals": {"token_hidden_states": []}}, "at least 1 item"),
        ({"signals": SIGNALS, "select": {"kind": "right_crop"}}, "signals.token_hidden_states is stored for every"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        key(BF16, **settings)


def test_keys_without_them_do_not_speak_of_them(base: dict[str, Any]) -> None:
    assert "token_hidden" not in key(BF16).model_dump_json()
    with_them = Config.model_validate(merge(base, {"kv": {"signals": SIGNALS}}))
    spec = all_jobs(with_them)["extract", None].spec
    assert spec.model_dump()["key"]["signals"]["token_hidden_states"] == LAYERS
