"""Why weights that are trained are fp32: on the demo, at the learning rate of the reference preset."""

import json
from pathlib import Path

import pytest
import torch

from kava.cli import main
from kava.config.arms import Arm
from kava.config.models import ModelSettings
from kava.config.schema import Distill
from kava.data.tokens import TokenSet
from kava.models.load import load_student, second_model_allowed
from kava.training.batches import Batches
from kava.training.journal import TrainingRun
from kava.training.loop import train
from kava.training.model import DistillationModel

pytestmark = pytest.mark.slow


def losses(tokens: TokenSet, folder: Path, weights: torch.dtype, precision: str, optimizer: str) -> torch.Tensor:
    """Cross entropy of the demo's student over 60 steps, a mean per 10."""
    settings = {"steps": 60, "batch_size": 16, "accumulation": 1, "student_lr": 5e-5, "warmup_ratio": 0.0}
    settings |= {"precision": precision, "optimizer": optimizer}
    arm, cpu = Arm(aligner=None), torch.device("cpu")
    with second_model_allowed():
        student = load_student(ModelSettings(model="kava:student"), cpu, weights)
    model = DistillationModel(student, None, arm, True, "post_rope")
    train(model, Batches(tokens, "train"), Distill(**settings), TrainingRun(folder, "f", "sft", 1, cpu))
    return torch.tensor([json.loads(line)["ce"] for line in (folder / "metrics.jsonl").read_text().splitlines()])


def test_bf16_training_follows_fp32_and_bf16_weights_do_not(tmp_path: Path) -> None:
    assert main(["tokenize", "--preset", "demo", "--set", f"cache_dir={tmp_path}"]) == 0
    tokens = TokenSet(next(tmp_path.glob("tokens/*/manifest.json")))
    wide, narrow = torch.float32, torch.bfloat16
    reference = losses(tokens, tmp_path / "a", wide, "float32", "adamw")
    for name, optimizer in (("b", "adamw"), ("c", "adamw_8bit")):
        assert (losses(tokens, tmp_path / name, wide, "bfloat16", optimizer) - reference).abs().max() < 1e-3
    lost = losses(tokens, tmp_path / "d", narrow, "bfloat16", "adamw") - reference
    # It learns more slowly: most updates are smaller than half the distance of two bf16 numbers.
    assert lost[1:].min() > 1e-3
    assert lost[-2:].min() > 3e-3
