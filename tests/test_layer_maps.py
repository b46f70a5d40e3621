"""Layer maps: the rows that they are known for, and layers planted for CKA to find."""

import numpy as np
import pytest
import torch
from parsed import layer_map
from torch import Tensor

from kava.align import make_aligner
from kava.align.layers import block_means, cka_map, layer_weights, skip_map
from kava.align.projector import Projector
from kava.cka import cka_matrix
from kava.config.arms import FlatAligner, StructuredAligner
from kava.errors import UserError
from kava.kv import Geometry, ratio_map

KINDS = [{"kind": "ratio"}, {"kind": "uniform"}, {"kind": "skip"}, {"kind": "cka", "top_k": 1}]
DEPTHS = [(28, 24), (4, 2), (4, 1), (2, 4), (3, 3), (7, 3), (1, 5), (36, 7)]


@pytest.mark.parametrize(("teacher", "student"), DEPTHS)
@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings["kind"])
def test_every_student_layer_reads_weights_that_sum_to_one(settings: dict, teacher: int, student: int) -> None:
    weights = layer_weights(layer_map(settings), teacher, student)
    assert weights.shape == (student, teacher)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(student), atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings["kind"])
def test_equal_depths_map_each_layer_to_itself(settings: dict) -> None:
    assert torch.equal(layer_weights(layer_map(settings), 5, 5), torch.eye(5))


def test_ratio_map_spans_the_teacher() -> None:
    assert ratio_map(28, 24)[:3] == [0, 1, 2]
    assert ratio_map(28, 24)[-3:] == [25, 26, 27]
    assert ratio_map(4, 2) == [0, 3]
    assert ratio_map(4, 1) == [3]
    assert ratio_map(2, 4) == [0, 0, 1, 1]


def test_skip_map_counts_back_from_the_last_layer() -> None:
    assert skip_map(28, 24) == list(range(4, 28))
    assert skip_map(4, 2) == [1, 3]
    assert skip_map(4, 1) == [3]
    assert skip_map(2, 4) == [0, 0, 0, 1]
    assert skip_map(12, 5) == [3, 5, 7, 9, 11]


def test_uniform_map_averages_equal_blocks() -> None:
    def uniform(teacher: int, student: int) -> Tensor:
        return layer_weights(layer_map({"kind": "uniform"}), teacher, student)

    assert torch.equal(uniform(4, 2), torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]))
    assert torch.equal(uniform(4, 1), torch.full((1, 4), 0.25))
    assert torch.equal(uniform(2, 4), torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]))
    first, second = uniform(28, 24)[:2]
    torch.testing.assert_close(first[:3], torch.tensor([6 / 7, 1 / 7, 0]))
    torch.testing.assert_close(second[:4], torch.tensor([0, 5 / 7, 2 / 7, 0]))


@pytest.mark.parametrize(("sources", "targets"), [(2, 2), (4, 2), (2, 4), (3, 2), (8, 3), (1, 5), (28, 24)])
def test_block_means_are_the_means_of_equal_stretches_of_a_staircase(sources: int, targets: int) -> None:
    # Independent: cut every source into `targets` steps, and average `sources` steps for each target.
    values = np.random.default_rng(0).normal(size=sources)
    expected = np.repeat(values, targets).reshape(targets, sources).mean(1)
    np.testing.assert_allclose(block_means(sources, targets).double().numpy() @ values, expected, atol=1e-6)
    torch.testing.assert_close(block_means(sources, targets).sum(0), torch.full((sources,), targets / sources))


def test_cka_map_weighs_the_most_alike_layers_by_their_cka() -> None:
    cka = torch.tensor([[0.1, 0.6, 0.2, 0.0], [0.9, -0.5, 0.3, 0.3]])
    torch.testing.assert_close(cka_map(cka, 2), torch.tensor([[0, 0.75, 0.25, 0], [0.75, 0, 0.25, 0]]))
    assert torch.equal(cka_map(cka, 1), torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0]]))
    torch.testing.assert_close(cka_map(cka, 4)[1], torch.tensor([0.6, 0, 0.2, 0.2]))


def test_cka_map_gives_negative_layers_no_weight_and_equal_weights_where_all_are() -> None:
    cka = torch.tensor([[0.5, -0.1, -0.2], [-0.3, -0.1, 0.0], [-0.3, -0.1, -0.2]])
    expected = torch.tensor([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    assert torch.equal(cka_map(cka, 2), expected)


def test_cka_map_breaks_ties_towards_the_lower_layer() -> None:
    assert torch.equal(cka_map(torch.full((1, 64), 0.5), 3)[0, :4], torch.tensor([1, 1, 1, 0]) / 3)
    assert torch.equal(cka_map(torch.zeros(1, 64), 1)[0], torch.eye(64)[0])


def test_reading_more_layers_than_the_teacher_has_is_refused_at_once() -> None:
    settings = StructuredAligner(layer_map={"kind": "cka", "top_k": 5})
    with pytest.raises(UserError, match=r"top_k is 5 and the teacher has 4 layers; set it to 1 to 4"):
        make_aligner(settings, Geometry(4, 2, 8), Geometry(2, 2, 8))
    with pytest.raises(UserError, match="1 to 4"):
        cka_map(torch.rand(2, 4), 5)


def test_cka_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        cka_map(torch.tensor([[0.5, torch.nan]]), 1)


def test_cka_picks_the_planted_layers_and_the_aligner_then_reads_them() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 200, 12, generator=generator)  # [L_t, N, H · D]
    planted = [3, 0, 4]
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    student = teacher[planted] @ rotation + 0.3 * torch.randn(3, 200, 12, generator=generator)
    aligner = make_aligner(
        StructuredAligner(layer_map={"kind": "cka", "top_k": 1}), Geometry(5, 2, 6), Geometry(3, 2, 6)
    )
    assert torch.equal(aligner.layer_weights, torch.eye(5)[ratio_map(5, 3)]), "starts as the ratio map"
    aligner.set_layer_similarity(cka_matrix(student, teacher))
    assert torch.equal(aligner.layer_weights, torch.eye(5)[planted])
    x = torch.randn(1, 5, 2, 7, 6)
    without = aligner(x)
    x[:, [1, 2]] = 0
    assert torch.equal(aligner(x), without), "layers that were not picked are not read"


@pytest.mark.parametrize("settings", [FlatAligner(), StructuredAligner(), StructuredAligner(layer_map=KINDS[1])])
def test_aligners_without_a_cka_map_do_not_listen_to_it(settings: FlatAligner | StructuredAligner) -> None:
    aligner = make_aligner(settings, Geometry(4, 2, 8), Geometry(2, 2, 8)).eval()
    x = torch.randn(1, 4, 2, 3, 8)
    before = aligner(x)
    aligner.set_layer_similarity(torch.rand(2, 4))
    assert torch.equal(aligner(x), before)


def test_keys_are_mapped_by_the_cka_of_keys_and_values_by_that_of_values() -> None:
    settings = StructuredAligner(layer_map={"kind": "cka", "top_k": 1})
    projector = Projector(settings, Geometry(4, 2, 6), Geometry(2, 2, 6))
    like = {"keys": [0, 2], "values": [3, 1]}
    cka = torch.stack([torch.eye(4)[layers] for layers in like.values()])
    channels = torch.ones(2, 2, 2, 1, 6)
    projector.set_student_statistics(channels, channels, cka)
    for aligner, layers in zip(projector.aligners, like.values(), strict=True):
        assert torch.equal(aligner.layer_weights, torch.eye(4)[layers])
