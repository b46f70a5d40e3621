"""What `transform` learns, from which tokens, and of which it promises what; what tokens of other codecs share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numcodecs import Zstd
from parsed import codec_of
from store_fixtures import GEOMETRY, IDS, random_kv
from test_codecs import centred_cosine

from kava.data.tokens import Segment
from kava.kv import Geometry, KeysValues
from kava.store.codecs import Calibration, TokenInfo
from kava.store.codecs.prediction import Predictor

TOKENS = 1024
# Runs of 64 tokens, the first of every four.
HELD_OUT = torch.arange(TOKENS) // 64 % 4 == 0
ROOM = 10**6  # tokens of a store beside which no parameter counts


def sample(kv: KeysValues, ids: torch.Tensor | None = None, positions: torch.Tensor | None = None) -> Calibration:
    """A slice of these tokens, answers at the end of each 64; the first layer is no function of the id."""
    tokens = torch.arange(len(kv.keys))
    ids = torch.randint(IDS, (len(tokens),), generator=torch.Generator().manual_seed(3)) if ids is None else ids
    segment = torch.where(tokens % 64 >= 48, Segment.ANSWER, Segment.REASONING)
    info = TokenInfo(ids, tokens % 64 if positions is None else positions, segment)
    first = KeysValues(*(tensor[:IDS, :1] for tensor in random_kv(IDS, 99)))
    return Calibration(kv, info, torch.arange(IDS), first, ROOM)


def transform(given: Calibration, **settings: Any) -> Any:
    codec = codec_of({"kind": "transform", **settings}, GEOMETRY)
    codec.calibrate(given)
    return codec


def noise(tokens: int, seed: int) -> KeysValues:
    shape = (tokens, GEOMETRY.layers, GEOMETRY.kv_heads, GEOMETRY.head_dim)
    generator = torch.Generator().manual_seed(seed)
    return KeysValues(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


def test_held_out_tokens_take_no_part_in_what_is_fitted() -> None:
    kv, other = random_kv(TOKENS, 1), random_kv(TOKENS, 2)
    mixed = KeysValues(*(torch.where(HELD_OUT[:, None, None, None], b, a) for a, b in zip(kv, other, strict=True)))
    parameters = [transform(sample(block), target_cos=0.98).parameters() for block in (kv, mixed)]
    for name in ("mean", "first", "usual_ids", "usual_codes", "usual_step", "exact_codes", "scale"):
        assert (parameters[0][name] == parameters[1][name]).all(), name
    # How many components are kept follows the held-out tokens; the directions to choose from do not.
    few, many = sorted((torch.from_numpy(of_one["basis/0"]).float() for of_one in parameters), key=lambda x: x.shape[1])
    assert ((few.T @ many).abs().amax(1) > 0.999).all()


def test_the_target_is_reached_on_tokens_that_nothing_was_fitted_to() -> None:
    """Where new tokens are unlike those of the fit, it takes more bits, and not a lower cosine."""
    kv = zip(random_kv(TOKENS, 1), noise(TOKENS, 5), strict=True)
    given = sample(KeysValues(*(a.float() + 0.5 * HELD_OUT[:, None, None, None] * b for a, b in kv)))
    codec = transform(given, target_cos=0.99)
    decoded = codec.decode(codec.encode(given.kv, given.info), 0, given.info)
    for exact, tensor in zip(given.kv, decoded, strict=True):
        mean = exact[~HELD_OUT].mean(0)
        cosine = torch.nn.functional.cosine_similarity(exact - mean, tensor - mean, dim=-1)
        assert (cosine[HELD_OUT].mean(0) > 0.989).all()


def test_the_target_cosine_is_that_of_the_worst_head() -> None:
    """A first layer that the id determines costs nothing and is exact: no reason to code the others worse."""
    ids = torch.randint(IDS, (2 * TOKENS,), generator=torch.Generator().manual_seed(3))
    kv, table = noise(2 * TOKENS, 1), noise(IDS, 2)
    for tensor, of_ids in zip(kv, table, strict=True):
        tensor[:, 0] = of_ids[ids, 0]
    given = sample(kv, ids)._replace(first_layer=KeysValues(*(x[:, :1] for x in table)))
    codec = transform(given, target_cos=0.9)
    decoded = codec.decode(codec.encode(given.kv, given.info), 0, given.info)
    cosines = torch.stack([centred_cosine(exact, tensor) for exact, tensor in zip(given.kv, decoded, strict=True)])
    assert (cosines[:, 0] > 0.999).all()
    assert (cosines[:, 1:] > 0.895).all()


@pytest.mark.parametrize("first_tokens", [0, 4])
def test_first_tokens_and_answers_are_finer_where_they_are_asked_for_and_only_there(first_tokens: int) -> None:
    given = sample(random_kv(TOKENS, 1))
    errors = {}
    for fine_answers in (False, True):
        codec = transform(given, target_cos=0.9, first_tokens=first_tokens, fine_answers=fine_answers)
        decoded = codec.decode(codec.encode(given.kv, given.info), 0, given.info)
        wrong = decoded.values.float() - given.kv.values.float()
        errors[fine_answers] = wrong.square().mean((1, 2, 3)).sqrt()
    answers, first = given.info.segment == Segment.ANSWER, given.info.position < 4
    rest = ~answers & ~first
    plain, fine = errors[False], errors[True]
    assert torch.equal(plain[~answers], fine[~answers])
    # A second symbol is a fifth of a step; components that are dropped altogether stay dropped.
    assert fine[answers].mean() < 0.7 * plain[answers].mean()
    assert (plain[first].mean() < 0.7 * plain[rest].mean()) == (first_tokens == 4)


def test_fine_tokens_count_in_the_size_that_is_asked_for() -> None:
    given = sample(random_kv(4 * TOKENS, 1))
    codec = transform(given, target_ratio=0.1, fine_answers=True)
    stream = sum(len(Zstd(1).encode(array.numpy())) for array in codec.encode(given.kv, given.info).values())
    assert stream / len(given.kv.keys) / (4 * GEOMETRY.channels) < 0.105


def test_a_prediction_is_the_mean_over_other_occurrences_shrunk_by_one_at_the_overall_mean() -> None:
    """By hand: what is left of each token, and what the table says of a new one."""
    kv, positions = noise(96, 4), torch.arange(96) % 32
    given = sample(kv, positions=positions)
    ids = given.info.id.clone()
    ids[90] = IDS + 1  # once only
    given = given._replace(info=given.info._replace(id=ids))
    channels = torch.stack(kv, dim=2).flatten(1)
    predictor, left = Predictor.fit(given, channels, positions=2)
    centred = channels.double() - channels.double().mean(0)
    later, number = positions >= 2, ids.tolist()
    counted = torch.nonzero(later).flatten().tolist()
    table: dict[int, torch.Tensor] = {}
    for token in range(96):
        others = [i for i in counted if i != token and number[i] == number[token]]
        # With the one at the mean there are as many terms as occurrences.
        expected = sum(centred[i] for i in others) / (len(others) + 1) if others else torch.zeros_like(centred[0])
        if later[token]:
            torch.testing.assert_close(left[token].double(), centred[token] - expected, atol=2e-5, rtol=0)
            if others:
                table[int(ids[token])] = (centred[token] + expected * (len(others) + 1)) / (len(others) + 2)
        else:
            first = centred[positions == positions[token]].mean(0)
            torch.testing.assert_close(left[token].double(), centred[token] - first, atol=2e-3, rtol=0)
    new = TokenInfo(torch.arange(IDS + 5), torch.full((IDS + 5,), 9), torch.zeros(IDS + 5, dtype=torch.int64))
    predicted = predictor(new).double() - channels.double().mean(0)
    for token in range(IDS + 5):
        # Rounded to 127 levels of five deviations.
        torch.testing.assert_close(predicted[token], table.get(token, torch.zeros_like(centred[0])), atol=0.02, rtol=0)


def test_a_token_beyond_what_was_calibrated_is_clipped_and_does_not_become_another() -> None:
    given = sample(random_kv(TOKENS, 1))
    codec = transform(given, target_cos=0.95)
    far = KeysValues(*(x.float().clone() for x in given.kv))
    for tensor in far:
        tensor[5] = tensor.mean(0) + 30 * (tensor[5] - tensor.mean(0))
    decoded = codec.decode(codec.encode(far, given.info), 0, given.info)
    for exact, tensor in zip(far, decoded, strict=True):
        mean = exact.mean(0)
        cosine = torch.nn.functional.cosine_similarity((exact - mean)[5].flatten(), (tensor - mean)[5].flatten(), dim=0)
        assert cosine > 0.5


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_group_that_is_not_full_is_as_faithful_as_one_that_is(kind: str) -> None:
    """Keys with a bias of a hundred deviations, where anything but copies of tokens would take all levels."""
    keys = 100.0 + noise(70, 1).keys
    info = TokenInfo(*(torch.zeros(70, dtype=torch.int64) for _ in range(3)))
    codec = codec_of({"kind": kind}, GEOMETRY)
    decoded = codec.decode(codec.encode(KeysValues(keys, keys), info), 0, info).keys
    error = (decoded - keys).abs().amax((1, 2, 3))
    assert error[64:].max() <= error[:64].max()


def test_int4_values_share_a_scale_with_as_few_heads_as_make_64_values() -> None:
    geometry = Geometry(1, 2, 64)
    values = torch.randn(8, 1, 2, 64, generator=torch.Generator().manual_seed(0))
    values[:, :, 1] *= 1000
    info = TokenInfo(*(torch.zeros(8, dtype=torch.int64) for _ in range(3)))
    codec = codec_of({"kind": "int4"}, geometry)
    decoded = codec.decode(codec.encode(KeysValues(values, values), info), 0, info).values
    assert torch.nn.functional.cosine_similarity(decoded[:, 0, 0], values[:, 0, 0], dim=-1).min() > 0.98
