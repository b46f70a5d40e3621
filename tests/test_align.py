"""Aligners keep their contract for any pair of geometries, and recover what lies in their family and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kava.align import ALIGNERS, Aligner, make_aligner
from kava.align.flat_matched import structured_parameters
from kava.align.projector import Projector
from kava.config.arms import FlatAligner, FlatMatchedAligner, LinearAligner, StructuredAligner
from kava.kv import Geometry, KeysValues

SETTINGS = {
    "flat": FlatAligner(),
    "flat of half width": FlatAligner(mlp_ratio=0.5),
    "flat of mean layers": FlatAligner(aggregation="mean"),
    "flat of weighted layers": FlatAligner(aggregation="weighted"),
    "flat of the last layer": FlatAligner(layers="last"),
    "flat of the last layer, weighted": FlatAligner(layers="last", aggregation="weighted"),
    "linear": LinearAligner(),
    "flat_matched": FlatMatchedAligner(),
    "flat_matched to per_head": FlatMatchedAligner(match=StructuredAligner(per_head=True)),
    "structured": StructuredAligner(),
    "structured, random mixer": StructuredAligner(mixer_init="random"),
    "structured, per_head": StructuredAligner(per_head=True),
    "structured, shared by layers": StructuredAligner(per_layer=False),
    "structured, per_head, shared by layers": StructuredAligner(per_head=True, per_layer=False),
    "structured, uniform layers": StructuredAligner(layer_map={"kind": "uniform"}),
    "structured, skipped layers": StructuredAligner(layer_map={"kind": "skip"}),
    "structured, cka layers": StructuredAligner(layer_map={"kind": "cka", "top_k": 1}),
}
PAIRS = {
    "equal": (Geometry(3, 2, 8), Geometry(3, 2, 8)),
    "GQA to GQA, shallower": (Geometry(4, 2, 32), Geometry(2, 2, 16)),
    "MHA to MQA, deeper": (Geometry(2, 8, 8), Geometry(5, 1, 16)),
    "MQA to MHA, one layer to three": (Geometry(1, 1, 4), Geometry(3, 4, 2)),
    "odd numbers, to one layer": (Geometry(7, 3, 5), Geometry(1, 2, 9)),
}
REFERENCE = (Geometry(28, 2, 128), Geometry(24, 2, 64))

every_aligner = pytest.mark.parametrize("settings", list(SETTINGS.values()), ids=SETTINGS)
every_pair = pytest.mark.parametrize(("teacher", "student"), list(PAIRS.values()), ids=PAIRS)


def rows_of(geometry: Geometry, batch: int = 2, tokens: int = 6) -> Tensor:
    return torch.randn(batch, geometry.layers, geometry.kv_heads, tokens, geometry.head_dim)


def numel(settings: Any, teacher: Geometry, student: Geometry) -> int:
    """Parameters of keys and values together."""
    with torch.device("meta"):
        return Projector(settings, teacher, student).parameter_count


def test_every_aligner_has_settings_under_test() -> None:
    # The identity fits no other geometry; tests/test_cut.py has it.
    assert {settings.kind for settings in SETTINGS.values()} | {"identity"} == {aligner.kind for aligner in ALIGNERS}


@every_pair
@every_aligner
def test_aligner_maps_geometry_and_treats_tokens_apart(settings: dict, teacher: Geometry, student: Geometry) -> None:
    aligner = make_aligner(settings, teacher, student).eval()
    x = rows_of(teacher)
    y = aligner(x)
    assert y.shape == (2, student.layers, student.kv_heads, 6, student.head_dim)
    changed = x.clone()
    changed[0, :, :, 3] = torch.randn_like(changed[0, :, :, 3])
    moved = (aligner(changed) - y).abs().amax((1, 2, 4))
    assert moved[0, 3] > 0
    moved[0, 3] = 0
    assert moved.max() == 0


@every_pair
@every_aligner
def test_every_parameter_gets_a_gradient(settings: dict, teacher: Geometry, student: Geometry) -> None:
    aligner = make_aligner(settings, teacher, student).eval()
    aligner(rows_of(teacher)).square().sum().backward()
    for name, parameter in aligner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_pair
@every_aligner
@torch.no_grad()
def test_bfloat16_is_finite_and_near_float32(settings: dict, teacher: Geometry, student: Geometry) -> None:
    aligner = make_aligner(settings, teacher, student).eval()
    x = rows_of(teacher)
    exact = aligner(x)
    rounded = aligner.bfloat16()(x.bfloat16())
    assert exact.isfinite().all()
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.02 * float(exact.abs().max()), rtol=0)


@every_pair
@every_aligner
def test_a_loaded_state_gives_the_same_output(settings: dict, teacher: Geometry, student: Geometry) -> None:
    first, second = (make_aligner(settings, teacher, student).eval() for _ in range(2))
    first.set_layer_similarity(torch.rand(student.layers, teacher.layers))
    second.load_state_dict(first.state_dict())
    x = rows_of(teacher)
    assert torch.equal(first(x), second(x))


def test_structured_is_its_formula_element_by_element() -> None:
    teacher, student = Geometry(3, 4, 5), Geometry(2, 3, 6)
    settings = StructuredAligner(per_head=True, layer_map={"kind": "uniform"}, mixer_init="random")
    aligner = make_aligner(settings, teacher, student).double()
    torch.nn.init.normal_(aligner.bias)
    x = rows_of(teacher).double()
    layers = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    expected = aligner.bias[None, :, :, None] + torch.einsum(
        "lm,lsh,lsed,bmhtd->blste", layers, aligner.mixer, aligner.projection, x
    )
    torch.testing.assert_close(aligner(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("aggregation", "layers"), [("mean", "all"), ("weighted", "all"), ("concat", "last")])
def test_flat_averages_or_picks_layers_before_anything_else(aggregation: str, layers: str) -> None:
    teacher, student = PAIRS["GQA to GQA, shallower"]
    aligner = make_aligner(FlatAligner(aggregation=aggregation, layers=layers), teacher, student).eval()
    x = rows_of(teacher)
    one_layer = x.mean(1, keepdim=True) if layers == "all" else x[:, -1:]  # learned weights start equal
    torch.testing.assert_close(aligner(x), aligner(one_layer.expand_as(x)))
    assert aligner.layers[0].normalized_shape == (2 * 32,)


def test_flat_with_learned_weights_can_read_one_layer_alone() -> None:
    teacher, student = PAIRS["GQA to GQA, shallower"]
    aligner = make_aligner(FlatAligner(aggregation="weighted"), teacher, student).eval()
    aligner.layer_weights.data[2] = 50.0
    x = rows_of(teacher)
    torch.testing.assert_close(aligner(x), aligner(x[:, 2:3].expand_as(x)))


@pytest.mark.parametrize(("mlp_ratio", "hidden"), [(0.5, 128), (1.0, 256), (2.0, 512)])
def test_the_hidden_width_of_flat_is_its_ratio_of_the_teachers_channels(mlp_ratio: float, hidden: int) -> None:
    teacher, student = PAIRS["GQA to GQA, shallower"]
    aligner = make_aligner(FlatAligner(mlp_ratio=mlp_ratio), teacher, student)
    assert [layer.out_features for layer in aligner.layers if isinstance(layer, torch.nn.Linear)] == [hidden, 64]


@pytest.mark.parametrize("mixer_init", ["uniform", "random"])
def test_heads_are_mixed_evenly_at_the_start_unless_they_are_drawn(mixer_init: Any) -> None:
    settings = StructuredAligner(mixer_init=mixer_init)
    mixer = make_aligner(settings, Geometry(2, 4, 8), Geometry(3, 2, 4)).mixer
    even = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).expand(3, 2, 4)
    assert torch.equal(mixer, even) == (mixer_init == "uniform")


def test_flat_projector_of_the_reference_pair_has_146849792_parameters() -> None:
    assert numel(FlatAligner(), *REFERENCE) == 146_849_792


def test_linear_projector_of_the_reference_pair_has_a_weight_per_pair_of_channels() -> None:
    assert numel(LinearAligner(), *REFERENCE) == 2 * 3072 * (7168 + 1)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 399_552),
        ({"per_head": True}, 24 * 2 * (2 * 128 * 64 + 2 * 2 + 2 * 64)),
        ({"per_layer": False}, 2 * (128 * 64 + 24 * (2 * 2 + 2 * 64))),
        ({"layer_map": {"kind": "uniform"}}, 399_552),
    ],
)
def test_structured_projector_of_the_reference_pair_has_about_400_thousand(changes: dict, parameters: int) -> None:
    assert numel(StructuredAligner(**changes), *REFERENCE) == parameters


def test_structured_projector_of_the_demo_has_2192_parameters() -> None:
    assert numel(StructuredAligner(), Geometry(4, 2, 32), Geometry(2, 2, 16)) == 2192


@pytest.mark.parametrize("match", [StructuredAligner(), StructuredAligner(per_head=True)], ids=["shared", "per_head"])
@pytest.mark.parametrize(("teacher", "student"), [*PAIRS.values(), REFERENCE], ids=[*PAIRS, "reference"])
def test_flat_matched_has_the_rank_with_the_nearest_count(
    match: StructuredAligner, teacher: Geometry, student: Geometry
) -> None:
    target = numel(match, teacher, student) // 2
    assert structured_parameters(match, teacher, student) == target
    with torch.device("meta"):
        aligner = make_aligner(FlatMatchedAligner(match=match), teacher, student)

    def count(rank: int) -> int:
        return rank * teacher.channels + rank + student.channels * rank + student.channels

    assert sum(parameter.numel() for parameter in aligner.parameters()) == count(aligner.rank)
    distances = {rank: abs(count(rank) - target) for rank in range(1, aligner.rank + 50)}
    assert distances[aligner.rank] == min(distances.values())


def test_flat_matched_of_the_reference_pair_is_within_three_percent_of_structured() -> None:
    matched, structured = numel(FlatMatchedAligner(), *REFERENCE), numel(StructuredAligner(), *REFERENCE)
    assert abs(matched - structured) / structured < 0.03


def test_counting_parameters_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    structured_parameters(StructuredAligner(mixer_init="random"), *REFERENCE)
    assert torch.equal(torch.get_rng_state(), state)


def held_out_r2(aligner: Aligner, planted: Any, teacher: Geometry) -> float:
    """Fit by Adam to a map of teacher rows, then score on rows that it was not fitted to."""
    torch.manual_seed(1)
    x = rows_of(teacher, batch=1, tokens=512)
    target = planted(x).detach()
    optimizer = torch.optim.Adam(aligner.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (aligner(x) - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x = rows_of(teacher, batch=1, tokens=256)
        target = planted(x)
        left = (aligner(x) - target).square().sum()
        return 1 - float(left / (target - target.mean(3, keepdim=True)).square().sum())


@pytest.mark.parametrize("name", ["linear", "structured", "structured, per_head", "structured, uniform layers"])
def test_a_planted_map_of_an_aligners_own_family_is_recovered(name: str) -> None:
    teacher, student = Geometry(4, 2, 6), Geometry(2, 2, 4)
    torch.manual_seed(0)
    settings = SETTINGS[name]
    planted = make_aligner(
        settings.model_copy(update={"mixer_init": "random"} if "structured" in name else {}), teacher, student
    )
    assert held_out_r2(make_aligner(settings, teacher, student), planted, teacher) > 0.99


def test_a_map_that_mixes_layers_is_recovered_by_linear_and_not_by_structured() -> None:
    teacher, student = Geometry(4, 2, 6), Geometry(2, 2, 4)
    torch.manual_seed(0)
    weights = torch.randn(2, 4, 2, 4, 2, 6)

    def planted(x: Tensor) -> Tensor:
        return torch.einsum("lsemhd,bmhtd->blste", weights.permute(0, 2, 3, 1, 4, 5), x)

    assert held_out_r2(make_aligner(LinearAligner(), teacher, student), planted, teacher) > 0.99
    # It reads one layer of the four, which holds about a quarter of the variance.
    assert held_out_r2(make_aligner(StructuredAligner(), teacher, student), planted, teacher) < 0.35


@pytest.mark.parametrize("center", [True, False])
def test_projector_survives_saving_and_standardises_keys_and_values_each_by_their_own(
    center: bool, tmp_path: Path
) -> None:
    teacher, student = PAIRS["GQA to GQA, shallower"]
    projector = Projector(StructuredAligner(), teacher, student, center).eval()
    mean = {name: size * torch.randn(4, 2, 32) for name, size in (("keys", 500.0), ("values", 2.0))}
    std = {name: size * (0.5 + torch.rand(4, 2, 32)) for name, size in (("keys", 20.0), ("values", 0.1))}
    projector.set_teacher_statistics(mean, std)
    for statistic in (projector.student_mean, projector.output_mean, projector.output_scale):
        statistic.normal_()
    x = KeysValues(torch.randn(1, 4, 2, 5, 32), torch.randn(1, 4, 2, 5, 32))
    stored = KeysValues(*(z * std[n].unsqueeze(-2) + mean[n].unsqueeze(-2) for z, n in zip(x, mean, strict=True)))
    projected = projector(stored)
    for i in range(2):
        plain = projector.aligners[i](x[i])
        if center:
            plain = projector.output_scale[i] * (plain - projector.output_mean[i]) + projector.student_mean[i]
        else:
            plain = projector.output_scale[i] * plain
        torch.testing.assert_close(projected[i], plain, atol=1e-3, rtol=0)
    projector.save(tmp_path)
    again = Projector.load(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(again(stored), projected, strict=True))


def test_a_saved_projector_keeps_the_layers_chosen_by_cka(tmp_path: Path) -> None:
    teacher, student = PAIRS["GQA to GQA, shallower"]
    settings = StructuredAligner(layer_map={"kind": "cka", "top_k": 2})
    projector = Projector(settings, teacher, student).eval()
    for aligner in projector.aligners:
        aligner.set_layer_similarity(torch.rand(2, 4))
    projector.save(tmp_path)
    again = Projector.load(tmp_path).eval()
    for before, after in zip(projector.aligners, again.aligners, strict=True):
        assert torch.equal(before.layer_weights, after.layer_weights)
        assert int((after.layer_weights > 0).sum()) == 4
    assert not torch.equal(again.aligners[0].layer_weights, again.aligners[1].layer_weights)
