"""Cross entropy in pieces is that of all logits at once, and few logits are computed as they always were."""

from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import nn

from kava.config.arms import Arm
from kava.errors import UserError
from kava.losses import cross_entropy as ce
from kava.training.model import DistillationModel


def cross_entropies(head: nn.Linear, autocast: bool, monkeypatch: Any) -> list[list[torch.Tensor]]:
    """Loss and gradients with all logits at once, and in pieces of 8."""
    torch.manual_seed(1)
    hidden, targets = torch.randn(50, 24), torch.randint(0, 97, (50,))
    found = []
    for logits in (2**24, 8 * 97):
        monkeypatch.setattr(ce, "LOGITS_AT_ONCE", logits)
        head.zero_grad()
        own = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = ce.cross_entropy(own, head, targets)
        assert loss.dtype == torch.float32
        (0.5 * loss).backward()  # as a loss with a weight, or divided by the accumulation
        found.append([loss.detach(), own.grad, *(p.grad.clone() for p in head.parameters() if p.requires_grad)])
    return found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy_in_pieces_is_that_of_all_logits(bias: bool, frozen: bool, monkeypatch) -> None:
    head = nn.Linear(24, 97, bias=bias).requires_grad_(not frozen)
    whole, pieces = cross_entropies(head, False, monkeypatch)
    assert len(whole) == 2 + (not frozen) * (1 + bias)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_cross_entropy_in_pieces_under_autocast_differs_by_rounding(monkeypatch) -> None:
    whole, pieces = cross_entropies(nn.Linear(24, 97), True, monkeypatch)
    for one, other in zip(whole, pieces, strict=True):
        assert (other - one).norm() / one.norm() < 0.01


def test_up_to_a_number_of_logits_they_are_computed_as_one_tensor(monkeypatch) -> None:
    monkeypatch.setattr(ce, "checkpoint", None)
    head = nn.Linear(24, 97)
    hidden, targets = torch.randn(50, 24), torch.randint(0, 97, (50,))
    expected = nn.functional.cross_entropy(head(hidden), targets)
    assert torch.equal(ce.cross_entropy(hidden, head, targets), expected)


def test_a_student_that_changes_logits_after_its_head_is_refused() -> None:
    student = tiny_model("qwen2")
    student.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match=r"qwen2 changes logits after its head \(final_logit_softcapping: 30\.0\)"):
        DistillationModel(student, None, Arm(aligner=None), True, "pre_rope")
