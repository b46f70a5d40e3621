"""Aligners keep their contract for any pair of geometries."""

import pytest
import torch

from kava.align import ALIGNERS, make_aligner
from kava.align.layers import ratio_map
from kava.align.projector import Projector
from kava.align.structured import uniform_mixer
from kava.cache.capture import Geometry, KeysValues
from kava.config.arms import FlatAligner, StructuredAligner

SETTINGS = [FlatAligner().model_dump(), StructuredAligner().model_dump(), StructuredAligner(per_head=True).model_dump()]
PAIRS = [
    (Geometry(4, 2, 32), Geometry(2, 2, 16)),
    (Geometry(2, 8, 8), Geometry(5, 1, 16)),
    (Geometry(1, 1, 4), Geometry(3, 3, 2)),
    (Geometry(7, 3, 5), Geometry(1, 2, 9)),
]


def test_every_aligner_has_settings_under_test() -> None:
    assert {settings["kind"] for settings in SETTINGS} == {aligner.kind for aligner in ALIGNERS}


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_aligner_maps_geometry_and_treats_tokens_apart(settings: dict, teacher: Geometry, student: Geometry) -> None:
    aligner = make_aligner(settings, teacher, student).eval()
    x = torch.randn(2, teacher.layers, teacher.kv_heads, 6, teacher.head_dim)
    y = aligner(x)
    assert y.shape == (2, student.layers, student.kv_heads, 6, student.head_dim)
    changed = x.clone()
    changed[:, :, :, 3] += 1
    moved = (aligner(changed) - y).abs().amax((0, 1, 2, 4))
    assert moved[3] > 0
    assert moved[[0, 1, 2, 4, 5]].max() == 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_parameter_gets_a_gradient(settings: dict) -> None:
    aligner = make_aligner(settings, *PAIRS[0])
    aligner(torch.randn(2, 4, 2, 6, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in aligner.parameters())


def test_flat_projector_of_the_reference_pair_has_146849792_parameters() -> None:
    with torch.device("meta"):
        projector = Projector(FlatAligner().model_dump(), Geometry(28, 2, 128), Geometry(24, 2, 64))
    assert projector.trainable_parameters == 146_849_792


def test_structured_projector_of_the_reference_pair_has_about_400_thousand() -> None:
    projector = Projector(StructuredAligner().model_dump(), Geometry(28, 2, 128), Geometry(24, 2, 64))
    assert projector.trainable_parameters == 24 * 2 * (128 * 64 + 2 * 2 + 2 * 64)


@pytest.mark.parametrize(("teacher", "student"), [(2, 2), (4, 2), (2, 4), (3, 2), (8, 3), (1, 5)])
def test_uniform_mixer_rows_sum_to_one_and_heads_are_spread_evenly(teacher: int, student: int) -> None:
    mixer = uniform_mixer(teacher, student)
    torch.testing.assert_close(mixer.sum(1), torch.ones(student))
    torch.testing.assert_close(mixer.sum(0), torch.full((teacher,), student / teacher))
    if teacher == student:
        assert torch.equal(mixer, torch.eye(teacher))


def test_ratio_map_spans_the_teacher() -> None:
    assert ratio_map(28, 24)[0] == 0
    assert ratio_map(28, 24)[-1] == 27
    assert ratio_map(4, 2) == [0, 3]
    assert ratio_map(4, 1) == [3]
    assert ratio_map(2, 4) == [0, 0, 1, 1]


def test_projector_survives_saving_and_standardises_the_teacher(tmp_path) -> None:
    teacher, student = PAIRS[0]
    projector = Projector(StructuredAligner().model_dump(), teacher, student).eval()
    bias = 500.0 * torch.randn(4, 2, 32)
    statistics = dict.fromkeys(("keys", "values"), bias)
    projector.set_teacher_statistics(statistics, {name: torch.ones(4, 2, 32) for name in ("keys", "values")})
    projector.student_mean.normal_()
    x = torch.randn(1, 4, 2, 5, 32)
    projected = projector(KeysValues(x + bias.unsqueeze(-2), x + bias.unsqueeze(-2)))
    plain = projector.aligners[0](x) + projector.student_mean[0]
    torch.testing.assert_close(projected.keys, plain, atol=1e-3, rtol=0)
    projector.save(tmp_path)
    again = Projector.load(tmp_path).eval()
    assert torch.equal(again(KeysValues(x, x)).values, projector(KeysValues(x, x)).values)
