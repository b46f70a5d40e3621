"""The loss `hidden`: layers, tokens and means that reach its formula, by hand in float64; and a phase with it alone."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from store_fixtures import BF16, fill_store, some_ids
from test_batches import arm, token_set
from test_wiring import ARMS as WIRED
from test_wiring import SEEDS, World

from kava.config import load_config
from kava.config.arms import Arm
from kava.config.schema import Distill
from kava.errors import UserError
from kava.kv import pad_ids
from kava.losses.hidden import Hidden, hidden_distance, with_layers
from kava.store.reader import StoreReader
from kava.training.batches import Batches, stored_batches
from kava.training.calibrate import calibrate_hidden
from kava.training.journal import TrainingRun
from kava.training.loop import train
from kava.training.model import DistillationModel

EXAMPLES = [0, 1, 3, 5]
STORED = [0, 1, 2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    teacher = tiny_model("qwen2", max_position_embeddings=128)
    fill_store(folder, teacher, some_ids(), BF16, signals={"token_hidden_states": STORED})
    return folder / "manifest.json"


def prepared(manifest: Path, width: int = 32, **hidden: Any) -> tuple[DistillationModel, Batches]:
    """A student of two layers, calibrated as a phase does it."""
    store = StoreReader(manifest)
    shape = {"num_hidden_layers": 2, "hidden_size": width, "max_position_embeddings": 128}
    student = tiny_model("qwen2", **shape)
    torch.nn.init.uniform_(student.model.norm.weight, 0.2, 3.0)  # as drawn, it would leave every cosine as it is
    settings = with_layers(arm(None, auxiliary={"hidden": hidden}), student.config, 3, STORED)
    torch.manual_seed(0)
    model = DistillationModel(student, None, settings, True, "post_rope", store.contents.hidden_width).eval()
    batches = stored_batches(token_set(), "train", store, settings)
    (loss,) = model.auxiliary
    assert isinstance(loss, Hidden)
    calibrate_hidden(loss, student, partial(batches.slice, range(len(batches)), 3))
    return model, batches


def states_alone(model: Any, ids: np.ndarray) -> np.ndarray:
    """What every block gives for one example, float64 `[L, T, W]`; before the final norm, which is taken away."""
    norm, model.norm = model.norm, torch.nn.Identity()
    try:
        with torch.no_grad():
            states = model(pad_ids([ids])[0], output_hidden_states=True).hidden_states
    finally:
        model.norm = norm
    return torch.cat(states[1:]).double().numpy()


def by_hand(model: DistillationModel, manifest: Path, layers: list[int], center: bool) -> float:
    store, ids = StoreReader(manifest), some_ids()
    own = [states_alone(model.student.model, x) for x in ids]
    theirs = [store.token_hidden_states("train", n, layers).double().numpy().swapaxes(0, 1) for n in range(len(ids))]
    means = [np.concatenate(side, 1).mean(1, keepdims=True) * center for side in (own, theirs)]
    cosines = []
    for example in EXAMPLES:
        s, t = (side[example] - mean for side, mean in zip((own, theirs), means, strict=True))
        cosines.append((s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1))
    return float(1 - np.concatenate(cosines, 1).mean())


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("layers", [[0, 2], [2, 1]])
def test_it_is_the_mean_cosine_distance_of_every_token_of_paired_layers(
    layers: list[int], center: bool, manifest: Path
) -> None:
    model, batches = prepared(manifest, layers=layers, center=center)
    with torch.no_grad():
        output = model(**batches.collate(EXAMPLES))
    assert float(output["hidden"]) == pytest.approx(by_hand(model, manifest, layers, center), rel=1e-4)
    torch.testing.assert_close(output["loss"], output["ce"] + output["hidden"])
    assert batches.counts(EXAMPLES)["tokens"] == sum(len(some_ids()[example]) for example in EXAMPLES)


def test_the_formula_is_that_of_float64_and_padding_has_no_part_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 5, 7, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = np.mean(
        [
            1 - s @ t / np.linalg.norm(s) / np.linalg.norm(t)
            for layer in range(3)
            for s, t in zip(student[layer][mask > 0].numpy(), teacher[layer][mask > 0].numpy(), strict=True)
        ]
    )
    for poison in (0.0, float("nan"), float("inf")):
        sides = [list(x.masked_fill((mask == 0)[None, :, :, None], poison).unbind(0)) for x in (student, teacher)]
        assert float(hidden_distance(*sides, mask)) == pytest.approx(expected, rel=1e-10)


def test_micro_batches_of_unlike_lengths_add_up_and_every_layer_gets_a_gradient(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = prepared(manifest, width=48)
    monkeypatch.setattr(model, "_cross_entropy", lambda *_: torch.zeros(()))
    whole, found = batches.counts(EXAMPLES), []
    for parts in ([EXAMPLES], [EXAMPLES[:1], EXAMPLES[1:]]):
        model.zero_grad()
        for part in parts:
            own = batches.counts(part)
            model({name: own[name] / (whole[name] or 1) for name in whole}, **batches.collate(part))["loss"].backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)
    for layer in range(2):
        assert found[0][f"student.model.layers.{layer}.mlp.down_proj.weight"].abs().sum() > 0
    assert "student.model.norm.weight" not in found[0]
    (projection,) = [name for name in found[0] if not name.startswith("student.")]
    assert found[0][projection].shape == (48, 32)


class Config:
    """Of a student with two layers."""

    num_hidden_layers = 2

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        return self.settings


HIDDEN = arm(None, auxiliary={"hidden": {}})
NAMED = arm(None, auxiliary={"hidden": {"layers": [1, 2]}})


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        (HIDDEN, Config(), [0, 5]),
        (HIDDEN, Config(kept_layers=[0, 3]), [0, 3]),
        (NAMED, Config(kept_layers=[0, 3]), [1, 2]),
    ],
)
def test_layers_are_those_named_or_kept_or_at_the_ratio_of_depth(
    settings: Arm, config: Config, expected: list[int]
) -> None:
    found = with_layers(settings, config, 6, range(6)).auxiliary.hidden
    assert found
    assert found.layers == expected


def test_layers_that_are_not_stored_or_too_few_are_named() -> None:
    with pytest.raises(
        UserError, match=r"no hidden states of \[5\]; set kv\.signals\.token_hidden_states: \[0, 1, 5\]"
    ):
        with_layers(HIDDEN, Config(), 6, [0, 1])
    with pytest.raises(UserError, match=r"compares 3 teacher layers \[0, 1, 2\] with a student of 2"):
        with_layers(HIDDEN, Config(kept_layers=[0, 1, 2]), 6, range(6))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, r"set kv\.signals\.token_hidden_states"),
        ({"kv": {"signals": {"token_hidden_states": [0, 1]}}}, r"names the teacher's layers \[3\]"),
        (
            {"kv": {"signals": {"token_hidden_states": [0, 3]}}, "student_reasoning": "equations"},
            "set student_reasoning: full",
        ),
    ],
)
def test_what_no_run_could_do_is_refused_as_the_configuration_is_read(settings: dict[str, Any], named: str) -> None:
    rival = {"aligner": None, "auxiliary": {"hidden": {"weight": 3, "layers": [0, 3]}}}
    with pytest.raises(UserError, match=named):
        load_config(None, {"arms": {"rival": rival}} | settings)


def test_an_arm_without_it_does_not_speak_of_it_and_one_with_it_is_a_control() -> None:
    assert "hidden" not in Arm(aligner=None).model_dump()["auxiliary"]
    assert HIDDEN.is_control
    assert HIDDEN.reads_store


def test_a_run_learns_the_states_and_logs_the_loss_until_its_time_is_over(manifest: Path, tmp_path: Path) -> None:
    model, batches = prepared(manifest, weight=2.0, until=0.75)
    settings = Distill(steps=8, batch_size=1, accumulation=3, student_lr=1e-2, log_every=2, warmup_ratio=0.0)
    train(model, batches, settings, TrainingRun(tmp_path, "f", "hidden", 1, torch.device("cpu")))
    logged = [json.loads(line)["hidden"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged[2] < 0.9 * logged[0]
    assert logged[-1] is None


def test_a_phase_finds_its_layers_and_fixes_its_means_by_the_base_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = {"aligner": None, "auxiliary": {"hidden": {"weight": 3}}}
    for name in WIRED:
        monkeypatch.setitem(WIRED, name, None if name != "sft" else WIRED["sft"])
    monkeypatch.setitem(WIRED, "rival", rival)
    world = World(tmp_path, {"signals": {"token_hidden_states": [0, 2]}})
    model, facts, batches = world.run(world.plan.distill("rival", SEEDS[0]))
    (loss,) = model.auxiliary
    assert loss.settings.layers == [0, 2]  # at the ratio of two layers to three
    assert facts["spec"]["arm"]["auxiliary"]["hidden"]["layers"] is None
    states = [world.store.token_hidden_states("train", n, [0, 2]).double() for n in range(len(batches))]
    torch.testing.assert_close(loss.teacher_mean, torch.cat(states).mean(0).float(), rtol=1e-3, atol=1e-4)
    assert loss.student_mean.abs().sum() > 0
