"""Alignment metrics tell a map from a constant."""

import json
import math

import pytest
import torch
from parsed import aligner

from kava.align.projector import Projector
from kava.grades import grade
from kava.kv import ChannelStatistics, Geometry, KeysValues
from kava.metrics import NAMES, Pair, alignment_metrics, nested
from kava.misalignment import warnings_for

BIAS = 20 * torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(1))


def batches(seed: int, count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Student vectors `[B, L, H, T, D]` with a large constant bias per channel, and ids; one padded token."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(4, 2, 2, 12, 8, generator=generator) + BIAS,
            torch.stack([torch.randperm(40, generator=generator)[:12] for _ in range(4)]),
        )
        for _ in range(count)
    ]


def score(projection, student_is=lambda student: student) -> dict:
    def predict(batch: tuple[torch.Tensor, torch.Tensor]) -> Pair:
        student, ids = student_is(batch[0]), batch[1]
        mask = torch.ones_like(ids)
        mask[:, -1] = 0
        projected = projection(student)
        return Pair(KeysValues(student, student), KeysValues(projected, projected), ids, mask)

    return alignment_metrics(predict, batches(1), batches(2))


def test_a_constant_scores_high_in_raw_cosine_and_is_called_a_collapse() -> None:
    metrics = score(lambda student: BIAS.expand_as(student))
    assert metrics["cos_sim"] > 0.95
    assert metrics["cos_sim"] == pytest.approx(metrics["cos_sim_constant"], abs=1e-3)
    assert metrics["r2"] == pytest.approx(0, abs=0.01)
    assert metrics["retrieval_at_1"] < 0.2
    assert any("collapse" in sentence for sentence in warnings_for(metrics))


def test_a_perfect_map_at_another_scale_explains_everything() -> None:
    metrics = score(lambda student: 3 * student)
    assert metrics["r2"] == pytest.approx(1, abs=1e-4)
    assert metrics["retrieval_at_1"] == 1
    assert metrics["cos_sim_centered"] == pytest.approx(1, abs=1e-4)
    assert metrics["mag_ratio"] == pytest.approx(3, rel=1e-4)
    assert warnings_for(metrics) == []


def test_r2_equals_the_share_of_variance_that_was_planted() -> None:
    generator = torch.Generator().manual_seed(3)
    metrics = score(lambda student: student + torch.randn(student.shape, generator=generator))
    # Signal and noise of equal variance: the best scale is 1/2, and it explains half.
    assert metrics["r2"] == pytest.approx(0.5, abs=0.03)


def test_padding_changes_no_metric() -> None:
    def spoil(student: torch.Tensor) -> torch.Tensor:
        spoiled = student.clone()
        spoiled[:, :, :, -1] = 1e4
        return spoiled

    assert score(spoil) == score(lambda student: student.clone())


def test_a_lost_scale_is_warned_about() -> None:
    assert any("magnitude" in sentence for sentence in warnings_for(score(lambda student: 0.01 * student)))


def turn(student: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turn what varies, in the plane of each even channel and the next odd one."""
    varying, angle = student - BIAS, math.radians(degrees)
    even, odd = varying[..., ::2], varying[..., 1::2]
    turned = (even * math.cos(angle) - odd * math.sin(angle), even * math.sin(angle) + odd * math.cos(angle))
    return torch.stack(turned, -1).flatten(-2) + BIAS


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_angular_distance_is_the_angle_over_pi_and_biases_do_not_hide_it(degrees: float) -> None:
    metrics = score(lambda student: turn(student, degrees))
    # The means of the slices are estimates, which turns centred vectors a little.
    assert metrics["angular_distance"] == pytest.approx(degrees / 180, abs=1e-3)
    assert metrics["cos_sim_centered"] == pytest.approx(math.cos(math.radians(degrees)), abs=1e-3)


def test_alignment_accuracy_counts_tokens_whose_angle_is_under_that_of_a_cosine_of_0_95() -> None:
    def projection(student: torch.Tensor) -> torch.Tensor:
        quarter = torch.arange(student.shape[-2])[:, None] % 4 == 0
        return torch.where(quarter, turn(student, 25), turn(student, 15))  # cosines of 0.906 and 0.966

    metrics = score(projection)
    # Of the eleven tokens that are no padding, numbers 0, 4 and 8 are turned too far.
    assert metrics["alignment_accuracy"] == pytest.approx(8 / 11, abs=0.02)


def test_r2_of_each_head_is_the_share_that_was_planted_there() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.tensor([[0.25, 0.5], [1.0, 2.0]])

    def projection(student: torch.Tensor) -> torch.Tensor:
        return 5 * (student + noise[:, :, None, None] * torch.randn(student.shape, generator=generator))

    metrics = score(projection)
    expected = 1 / (1 + noise.square())
    for of_tensor in metrics["per_head"]["r2"]:
        assert torch.tensor(of_tensor) == pytest.approx(expected, abs=0.05)
    assert metrics["r2"] == pytest.approx(float(expected.mean()), abs=0.02)


def silent(*heads: tuple[int, int]):
    """Student whose layers and heads as listed say the same for every token."""

    def student_is(student: torch.Tensor) -> torch.Tensor:
        changed = student.clone()
        for layer, head in heads:
            changed[:, layer, head] = BIAS[layer, head]
        return changed

    return student_is


def test_heads_that_do_not_vary_are_null_left_out_of_the_means_and_named() -> None:
    metrics = score(lambda student: student, silent((0, 1)))
    for name in NAMES:
        for of_tensor in metrics["per_head"][name]:
            assert of_tensor[0][1] is None
            assert None not in (of_tensor[0][0], *of_tensor[1])
    assert metrics["r2"] == pytest.approx(1, abs=1e-4)
    assert metrics["mag_ratio"] == pytest.approx(1, abs=1e-4)
    assert warnings_for(metrics) == [
        "2 of 8 heads of the student do not vary and cannot be scored: K layer 0 head 1, V layer 0 head 1"
    ]
    json.dumps(metrics, allow_nan=False)


def test_a_head_of_zeros_and_one_that_varies_by_rounding_alone_do_not_vary() -> None:
    def student_is(student: torch.Tensor) -> torch.Tensor:
        changed = student.clone()
        changed[:, 0, 0] = 0
        changed[:, 1, 1] = BIAS[1, 1] * (1 + 1e-7 * student[:, 1, 1].sign())
        return changed

    r2 = score(lambda student: student, student_is)["per_head"]["r2"]
    assert [[value is None for value in row] for row in r2[0]] == [[True, False], [False, True]]


def test_a_head_that_varies_in_training_alone_is_null_too() -> None:
    def predict(student: torch.Tensor) -> Pair:
        ids = torch.arange(12).expand(4, 12)
        return Pair(KeysValues(student, student), KeysValues(student, student), ids, torch.ones_like(ids))

    training = [student for student, _ in batches(1)]
    held_out = [silent((1, 0))(student) for student, _ in batches(2)]
    metrics = alignment_metrics(predict, training, held_out)
    assert metrics["per_head"]["r2"][1][1][0] is None
    assert metrics["r2"] == pytest.approx(1, abs=1e-4)


def test_a_student_that_never_varies_has_no_metrics_and_a_warning_says_so() -> None:
    metrics = score(lambda student: student, silent((0, 0), (0, 1), (1, 0), (1, 1)))
    assert all(metrics[name] is None for name in NAMES)
    (sentence,) = warnings_for(metrics)
    assert sentence.startswith("8 of 8 heads of the student do not vary")
    assert "K layer 1 head 1 and 4 more; no alignment metric has a value" in sentence
    json.dumps(metrics, allow_nan=False)


def test_a_collapse_of_single_heads_is_named_where_the_mean_looks_fine() -> None:
    def projection(student: torch.Tensor) -> torch.Tensor:
        changed = student.clone()
        changed[:, 1, 0] = BIAS[1, 0]
        return changed

    metrics = score(projection)
    assert metrics["r2"] > 0.7
    assert warnings_for(metrics) == [
        "collapse of 2 heads of 8, with a raw cosine above 0.9 and r2 below 0.05: K layer 1 head 0, V layer 1 head 0"
    ]


def test_bf16_vectors_are_widened_before_anything_is_summed() -> None:
    exact = score(lambda student: 3 * student.bfloat16().float(), lambda student: student.bfloat16().float())
    rounded = score(lambda student: 3 * student.bfloat16().float(), lambda student: student.bfloat16())
    assert rounded == exact


def test_grades_begin_at_their_limits() -> None:
    grades = [grade(value) for value in (1.0, 0.95, 0.94, 0.90, 0.89, 0.80, 0.79, -1.0, None)]
    assert grades == ["excellent", "excellent", "good", "good", "pass", "pass", "low", "low", None]


def test_nested_lists_have_none_where_a_value_is_not_defined() -> None:
    assert nested(torch.tensor([[1.0, math.nan]]), torch.tensor([[True, False]])) == [[1.0, None]]


def retrieval(student: list[list[float]], projected: list[list[float]], ids: list[int], tokens: int) -> float:
    """`retrieval_at_1` of one example of one head, whose slices for the means are centred already."""
    s, p = (torch.tensor(x)[None, None, None] for x in (student, projected))
    row, mask = torch.tensor([ids]), (torch.arange(len(ids)) < tokens)[None].long()

    def predict(sign: int) -> Pair:
        return Pair(KeysValues(sign * s, sign * s), KeysValues(sign * p, sign * p), row, mask)

    return alignment_metrics(predict, [1, -1], [1])["retrieval_at_1"]


def test_padding_is_not_found_however_near_it_is() -> None:
    student = [[1.0, 0.0], [0.0, 1.0], [0.7, 0.7], [0.8, 0.9]]
    projected = [[1.0, 0.1], [0.1, 1.0], [0.8, 0.9], [1.0, 0.0]]
    assert retrieval(student, projected, [5, 6, 7, 0], tokens=3) == 1
    # Were the last a token, the third would find it in place of itself, and the last would find the first.
    assert retrieval(student, projected, [5, 6, 7, 0], tokens=4) == pytest.approx(0.5)


def test_a_projected_vector_finds_a_student_vector_and_not_the_other_way_round() -> None:
    """Two projected tokens say what the student says at one: one of them is wrong. Each student token finds its own."""
    student = [[1.0, 0.0], [0.6, 0.8], [-1.0, 0.2]]
    projected = [[1.0, 0.0], [1.0, 0.3], [-1.0, 0.2]]
    assert retrieval(student, projected, [5, 6, 7], tokens=3) == pytest.approx(2 / 3)


def test_a_token_with_the_same_id_is_as_good_and_length_is_no_reason_to_be_found() -> None:
    student = [[1.0, 0.0], [0.9, 0.1], [0.0, 9.0]]
    projected = [[0.9, 0.1], [1.0, 0.0], [0.1, 1.0]]
    assert retrieval(student, projected, [5, 5, 7], tokens=3) == 1
    assert retrieval(student, projected, [5, 6, 7], tokens=3) == pytest.approx(1 / 3)


def test_a_channel_without_variance_changes_no_metric_of_its_head() -> None:
    def dead(student: torch.Tensor) -> torch.Tensor:
        changed = student.clone()
        changed[..., 3] = 700.0
        return changed

    def shorter(student: torch.Tensor) -> torch.Tensor:
        return torch.cat((student[..., :3], student[..., 4:]), -1)

    with_it, without = (score(lambda student: 3 * student, student_is) for student_is in (dead, shorter))
    assert warnings_for(with_it) == []
    for name in ("cos_sim_centered", "angular_distance", "alignment_accuracy", "r2", "mag_ratio", "retrieval_at_1"):
        assert with_it[name] == pytest.approx(without[name], abs=1e-3)


def test_a_channel_without_variance_is_standardised_to_nothing_and_not_to_nan() -> None:
    geometry = Geometry(1, 1, 4)
    projector = Projector(aligner({"kind": "linear"}), geometry, geometry)
    statistics = ChannelStatistics()
    values = torch.randn(3, 1, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    values[..., 2] = 731.25 / 3  # no float32 has it, so that its square is rounded
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    statistics.add((values, values), mask)
    kept = values[:, 0, 0][mask.bool()].double()
    torch.testing.assert_close(statistics.mean[0, 0, 0, 0].double(), kept.mean(0), rtol=1e-6, atol=1e-6)
    deviation = kept.std(0, correction=0)
    torch.testing.assert_close(statistics.std[0, 0, 0, 0].double(), deviation, rtol=1e-4, atol=1e-4)
    std = statistics.std.index_fill(-1, torch.tensor([2]), 0.0)
    by_name = ({name: x[i, ..., 0, :] for i, name in enumerate(("keys", "values"))} for x in (statistics.mean, std))
    projector.set_teacher_statistics(*by_name)
    projector.set_student_statistics(statistics.mean, std, torch.zeros(2, 1, 1))
    assert (projector.student_std > 0).all()
    assert all(torch.isfinite(x).all() for x in projector(KeysValues(values, values)))
    assert all(torch.isfinite(x).all() for x in projector.raw(KeysValues(values, values)))


def test_means_over_unequal_slices_and_batches_are_over_the_tokens_that_are_scored() -> None:
    """The training slice has two batches of six tokens of other means, the held-out examples a single one of four."""
    generator = torch.Generator().manual_seed(6)
    training = [shift + torch.randn(1, 1, 1, 6, 3, generator=generator) for shift in (4.0, -2.0)]
    held_out = torch.randn(1, 1, 1, 4, 3, generator=generator)
    mixing = torch.randn(3, 3, generator=generator)

    def predict(student: torch.Tensor) -> Pair:
        projected = student @ mixing + 7
        ids = torch.arange(student.shape[-2])[None]
        return Pair(KeysValues(student, student), KeysValues(projected, projected), ids, torch.ones_like(ids))

    metrics = alignment_metrics(predict, training, [held_out])
    fitted = torch.cat(training, dim=3)[0, 0, 0].double()
    s, p = held_out[0, 0, 0].double(), held_out[0, 0, 0].double() @ mixing.double() + 7
    mean_s, mean_p = fitted.mean(0), fitted.mean(0) @ mixing.double() + 7
    cosine = torch.nn.functional.cosine_similarity
    assert metrics["cos_sim"] == pytest.approx(float(cosine(s, p, -1).mean()), abs=1e-5)
    assert metrics["cos_sim_centered"] == pytest.approx(float(cosine(s - mean_s, p - mean_p, -1).mean()), abs=1e-5)
    assert metrics["cos_sim_constant"] == pytest.approx(float(cosine(s, mean_s.expand_as(s), -1).mean()), abs=1e-5)
    centred = (fitted - mean_s), (fitted - mean_s) @ mixing.double()
    scale = (centred[0] * centred[1]).sum() / centred[1].square().sum()
    error = ((s - mean_s) - scale * (p - mean_p)).square().sum() / (s - mean_s).square().sum()
    assert metrics["r2"] == pytest.approx(float(1 - error), abs=1e-5)


def test_a_projection_of_zeros_explains_nothing_and_is_a_number() -> None:
    metrics = score(torch.zeros_like)
    assert metrics["r2"] == pytest.approx(0, abs=0.01)
    json.dumps(metrics, allow_nan=False)


def test_constant_channels_have_no_deviation_however_their_squares_are_rounded() -> None:
    constants = 700 * torch.rand(64, generator=torch.Generator().manual_seed(0))
    statistics = ChannelStatistics()
    values = constants.expand(1, 1, 1, 1000, 64)
    statistics.add((values, values), torch.ones(1, 1000, dtype=torch.long))
    mean, square = statistics.moments
    assert (square < mean.square()).any(), "no rounding to be caught"
    assert (statistics.std < 1e-4).all()
