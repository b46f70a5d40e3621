"""`kava bench extract`, of the demo and of a made-up teacher in shards."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kava.bench.random_models import write_random
from kava.cli import main


@pytest.mark.slow
def test_a_streamed_demo_teacher_gives_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "extract", "--tokens", "300", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["same_bytes"] is True
    resident, streamed = figures["placements"]
    assert resident["tokens"] == streamed["tokens"] >= 300
    assert streamed["weights_read_bytes"] > 0
    assert "weights_read_bytes" not in resident


@pytest.mark.parametrize("tied", [True, False])
def test_made_up_weights_are_a_model_that_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """In more than one file, which are as good as those of `save_pretrained`."""
    monkeypatch.setattr("kava.bench.random_models.SHARD", "20KB")
    config = AutoConfig.for_model(
        "qwen2", num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=61, tie_word_embeddings=tied, torch_dtype="bfloat16",
    )  # fmt: skip
    write_random(config, tmp_path, seed=3)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(report.values())
    assert model.dtype == torch.bfloat16
    deviation = model.model.layers[1].mlp.up_proj.weight.float().std().item()
    assert deviation == pytest.approx(0.02, rel=0.1)
    assert set(model.model.norm.weight.tolist()) == {1.0}
    assert set(model.model.layers[0].self_attn.q_proj.bias.tolist()) == {0.0}
