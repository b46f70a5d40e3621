"""Compiled layers give the losses of the layers themselves."""

import json
from pathlib import Path

import pytest
from training_fixtures import make_model, run

from kava.training.student import prepare_student

# torch warns of its own reading of `.grad` while it compiles.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_compiled_layers_give_the_same_losses(gradient_checkpointing: bool, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        model = make_model(kv_until=0.5)
        prepare_student(model.student, None, gradient_checkpointing, compiled)
        run(tmp_path / str(compiled), model)
        lines = (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
