"""Checkpointed layers: the same KV, losses and gradients from less memory, and the KV's gradients flow."""

from typing import Any

import pytest
import torch
from conftest import tiny_model
from training_fixtures import STRUCTURED, TEACHER, FakeStore, batches

from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.kv import KeysValues
from kava.models.capture import geometry
from kava.training.model import DistillationModel

FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "gpt2"]


def a_model(family: str, **arm: Any) -> DistillationModel:
    settings = Arm(**{"aligner": STRUCTURED, "train_projector": True, "kv_until": 1.0} | arm)
    student = tiny_model(family)
    torch.manual_seed(0)
    projector = Projector(STRUCTURED, TEACHER, geometry(student.config), settings.loss.center)
    projector.set_teacher_statistics(FakeStore.mean, FakeStore.std)
    return DistillationModel(student, projector, settings, True, "pre_rope", 24)


def step(model: DistillationModel, checkpointed: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Loss parts and gradients of one step, and the bytes that forward saved for backward."""
    if checkpointed:
        model.student.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = batches().collate([0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    batch["teacher_hidden"] = torch.randn(3, 5, 24, generator=generator)
    batch["teacher_token_hidden"] = torch.randn(3, 3, batch["input_ids"].shape[1], 24, generator=generator)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        own = model._read(batch, True, model._auxiliaries)
    torch.manual_seed(3)
    output = model(**batch)
    output["loss"].backward()
    found = {"keys": own.kv.keys, "values": own.kv.values} | output
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found, sum(saved.values())


@pytest.mark.parametrize("kind", ["mercator", "structural"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_neither_kv_nor_gradients(family: str, kind: str) -> None:
    arm = {"loss": {"kind": kind}, "auxiliary": {"codi": {}, "hidden": {"layers": [0, 1, 3]}}}
    (plain, plain_bytes), (checkpointed, bytes_) = (step(a_model(family, **arm), on) for on in (False, True))
    assert plain.keys() == checkpointed.keys()
    assert {"kv", "codi", "hidden", "ce"} < plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert bytes_ < 0.8 * plain_bytes


def test_kv_loss_alone_gives_a_checkpointed_student_its_gradient() -> None:
    gradients = []
    for on in (False, True):
        model = a_model("qwen2")
        if on:
            model.student.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        batch = batches().collate([0, 1, 2])
        own = model._read(batch, True, []).kv
        projected = model.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
        model.objective.distance(own, projected, batch["kv_weight"], model.projector, 0.0).backward()
        gradients.append({name: p.grad for name, p in model.student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())
