"""Adapters are all that is trained, are resumed, and leave a plain model behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from training_fixtures import batches, make_model, run
from transformers import AutoModelForCausalLM

from kava.config.arms import Arm
from kava.config.models import Lora
from kava.errors import UserError
from kava.training.loop import Loop
from kava.training.lora import add_lora, merge_lora
from kava.training.model import DistillationModel


def with_lora(**settings: Any) -> DistillationModel:
    plain = make_model()
    torch.manual_seed(1)
    add_lora(plain.student, Lora(**{"rank": 4} | settings))
    return DistillationModel(plain.student, plain.projector, plain.arm, True, "pre_rope")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["ce"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_adapters_learn_and_what_lies_below_stays(tmp_path: Path, monkeypatch) -> None:

    plain = dict(tiny_model("qwen2").named_parameters())
    model = with_lora()
    trained = {name for name, p in model.student.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 3 * 7
    assert all("lora_" in name for name in trained)
    run(tmp_path / "whole", model, student_lr=1e-2, steps=12)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    for name, parameter in model.student.named_parameters():
        if name not in trained:
            assert torch.equal(parameter, plain[name.replace(".base_layer", "")]), name

    gradients = Loop.gradients

    def kill(loop: Loop, step: int) -> Any:
        if step == 6:
            raise KeyboardInterrupt
        return gradients(loop, step)

    monkeypatch.setattr(Loop, "gradients", kill)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", with_lora(), student_lr=1e-2, steps=12)
    monkeypatch.setattr(Loop, "gradients", gradients)
    resumed = with_lora()
    run(tmp_path / "cut", resumed, student_lr=1e-2, steps=12)
    for (name, a), b in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name

    ids = torch.randint(3, 61, (2, 9))
    model.eval()
    with torch.no_grad():
        before = model.student(ids).logits
        base = tiny_model("qwen2")(ids).logits
        assert (before - base).abs().max() > 1e-2
        merge_lora(model.student)
        model.student.save_pretrained(tmp_path / "export")
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
        torch.testing.assert_close(exported(ids).logits, before, atol=1e-4, rtol=0)
    assert type(exported) is type(model.student)
    assert set(exported.state_dict()) == set(tiny_model("qwen2").state_dict())
    assert sorted(p.name for p in (tmp_path / "export").glob("*.safetensors")) == ["model.safetensors"]


def test_adapters_on_bf16_weights_are_fp32_and_checkpointed_gradients_are_theirs() -> None:
    found = []
    for on in (False, True):
        student = tiny_model("qwen2").bfloat16()
        torch.manual_seed(1)
        add_lora(student, Lora(rank=4, dropout=0.1))
        model = DistillationModel(student, None, Arm(aligner=None), True, "pre_rope").train()
        if on:
            student.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16):
            model(**batches(store=False).collate([0, 1]))["loss"].backward()
        found.append({name: p.grad for name, p in student.named_parameters() if p.requires_grad})
        assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
        assert student.lm_head.weight.dtype == torch.bfloat16
    assert sum(gradient.abs().sum() for gradient in found[0].values()) > 0
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_gpt2_takes_adapters_by_its_own_names_and_unknown_ones_are_refused() -> None:
    student, ids = tiny_model("gpt2"), torch.randint(3, 61, (1, 5))
    before = student(ids).logits
    with pytest.raises(UserError, match=r"gpt2 has no q_proj; allowed: c_attn, c_fc, c_proj"):
        add_lora(student, Lora(targets=["c_attn", "q_proj"]))
    add_lora(student, Lora(targets=["c_attn"]))
    merge_lora(student)
    torch.testing.assert_close(student(ids).logits, before)
