"""A student that is written at some of its steps: whole models, and training that does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_steps import lines
from training_fixtures import make_model, run
from transformers import AutoModelForCausalLM

from kava.config import load_config
from kava.config.arms import Arm
from kava.config.jobs import Jobs
from kava.config.models import Lora
from kava.errors import UserError
from kava.plan.overview import disk_alone
from kava.training.at_steps import AtSteps, on_host
from kava.training.loop import Loop
from kava.training.lora import add_lora, merge_lora
from kava.training.model import DistillationModel

STEPS = (2, 5, 8)


def kept(model: DistillationModel, folder: Path, steps: tuple[int, ...] = STEPS) -> AtSteps:
    """What writes whole models in bf16."""

    def write(to: Path) -> None:
        on_host(model.student).to(torch.bfloat16).save_pretrained(to)

    return AtSteps(steps, folder / "at_steps", write)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("at_steps/*/model.safetensors"))}


class Killed(Exception):
    """The process is no more."""


def run_until(step: int, *given: Any, **settings: Any) -> None:
    """A run whose process is killed in the step after so many."""
    gradients = Loop.gradients

    def kill(loop: Loop, at: int) -> Any:
        if at == step:
            raise Killed
        return gradients(loop, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "gradients", kill)
        with pytest.raises(Killed):
            run(*given, **settings)


def test_training_is_the_same_to_the_byte_with_and_without_across_a_kill_too(tmp_path: Path) -> None:
    plain, whole, cut, resumed = (make_model() for _ in range(4))
    facts = run(tmp_path / "plain", plain)
    assert run(tmp_path / "whole", whole, at_steps=kept(whole, tmp_path / "whole")) == facts
    # The last checkpoint is of step 4: step 5, which was written, is done again.
    run_until(6, tmp_path / "cut", cut, at_steps=kept(cut, tmp_path / "cut"))
    assert set(weights(tmp_path / "cut")) == {"2", "5"}
    assert run(tmp_path / "cut", resumed, at_steps=kept(resumed, tmp_path / "cut")) == facts
    for other in (whole, resumed):
        for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b), name
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole") == lines(tmp_path / "plain")
    assert set(weights(tmp_path / "whole")) == {"2", "5", "8"}
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_each_is_a_whole_model_of_its_step_and_the_last_one_the_final_student(tmp_path: Path) -> None:
    model, shorter = make_model(None), make_model(None)
    run(tmp_path, model, at_steps=kept(model, tmp_path))
    found = {step: AutoModelForCausalLM.from_pretrained(tmp_path / "at_steps" / str(step)) for step in STEPS}
    assert {each.dtype for each in found.values()} == {torch.bfloat16}
    assert {p.dtype for p in model.student.parameters()} == {torch.float32}
    for (name, a), b in zip(model.student.named_parameters(), found[8].parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name
    run_until(5, tmp_path / "shorter", shorter)
    for (name, a), b in zip(shorter.student.named_parameters(), found[5].parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name


def test_what_another_run_left_goes_and_what_this_one_wrote_is_not_written_again(tmp_path: Path) -> None:
    written: list[str] = []
    for name in ("2", "3", "8.partial"):
        (tmp_path / "at_steps" / name).mkdir(parents=True)

    def write(to: Path) -> None:
        written.append(to.name)
        to.mkdir()

    of_run = AtSteps(STEPS, tmp_path / "at_steps", write)
    of_run.begin(4)
    assert sorted(path.name for path in (tmp_path / "at_steps").iterdir()) == ["2"], "3 is none of its steps"
    of_run.write(5)
    of_run.begin(5)
    assert sorted(path.name for path in (tmp_path / "at_steps").iterdir()) == ["2", "5"]
    of_run.begin(0)
    assert list((tmp_path / "at_steps").iterdir()) == [], "a run from its first step writes all anew"
    AtSteps((), tmp_path / "at_steps", write).begin(0)
    assert not (tmp_path / "at_steps").exists()
    assert written == ["5.partial"]


def test_adapters_are_merged_in_a_copy_and_stay_what_they_were() -> None:
    student = tiny_model("qwen2").bfloat16()
    torch.manual_seed(1)
    add_lora(student, Lora(rank=4))
    student.activation_checkpointing_enable({"use_reentrant": False})
    model = DistillationModel(student, None, Arm(aligner=None), True, "pre_rope").train()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    before, state = {name: p.clone() for name, p in student.named_parameters()}, torch.get_rng_state()
    plain = on_host(model.student)
    merge_lora(plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) and p.dtype == before[name].dtype for name, p in student.named_parameters())
    assert set(plain.state_dict()) == set(tiny_model("qwen2").state_dict())
    ids = torch.arange(3, 12)[None]
    merge_lora(student)
    torch.testing.assert_close(plain.eval()(ids).logits, student.eval()(ids).logits)


def test_steps_that_are_not_trained_or_do_not_increase_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation.at_steps has 900, and distill.steps is 800; remove it, or train"):
        load_config(None, {"evaluation": {"at_steps": [10, 900]}, "distill": {"steps": 800}})
    for steps in ([10, 10], [20, 10]):
        with pytest.raises(UserError, match=r"do not increase"):
            load_config(None, {"evaluation": {"at_steps": steps}})
    with pytest.raises(UserError, match="greater than 0"):
        load_config(None, {"evaluation": {"at_steps": [0, 10]}})


def test_a_plan_counts_them_and_keys_without_them_do_not_speak_of_them() -> None:
    plain, with_steps = (Jobs(load_config(None, {"evaluation": {"at_steps": steps}})) for steps in ([], [10, 20]))
    students = len(plain.config.arms) * len(plain.config.seeds)
    each = (disk_alone(with_steps).models - disk_alone(plain).models) / (2 * students)
    assert each == pytest.approx(disk_alone(plain).models / students, rel=1.0)
    arm = next(iter(plain.config.arms))
    assert "at_steps" not in plain.distill(arm, plain.config.seeds[0]).params
    assert '"at_steps":[10,20]' in with_steps.distill(arm, plain.config.seeds[0]).params
