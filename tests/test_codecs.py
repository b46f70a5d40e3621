"""Codecs by themselves: fidelity under a large bias, symbols in bytes, bits where they pay."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numcodecs import Zstd
from parsed import codec_of
from store_fixtures import CODECS_UNDER_TEST, GEOMETRY, IDS, calibration, random_kv

from kava.errors import UserError
from kava.kv import Geometry, KeysValues
from kava.store.codecs import Calibration, TokenInfo
from kava.store.codecs.allocation import Allocator, _solve
from kava.store.codecs.symbols import ALPHABETS

TOKENS = 1024


def facts(tokens: int) -> TokenInfo:
    return TokenInfo(torch.arange(tokens) % IDS, torch.arange(tokens) % 50, torch.zeros(tokens, dtype=torch.int64))


def round_trip(settings: dict[str, Any], kv: KeysValues, geometry: Geometry = GEOMETRY) -> KeysValues:
    """Calibrate on the block itself if need be, encode it, and decode it with a codec that reads the parameters."""
    codec, info = codec_of(settings, geometry), facts(len(kv.keys))
    if codec.calibration_tokens:
        row = torch.arange(IDS)
        first = KeysValues(*(tensor[row, :1] for tensor in kv))
        codec.calibrate(Calibration(kv, info, row, first, 10 * len(kv.keys)))
    reader = codec_of(settings, geometry)
    reader.load_parameters(codec.parameters(), torch.device("cpu"))
    return reader.decode(codec.encode(kv, info), 0, info)


def centred_cosine(exact: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the cosine with channel means removed, `[L, H]`, float64."""
    exact, decoded = exact.double(), decoded.double()
    mean = exact.mean(0)
    return torch.nn.functional.cosine_similarity(exact - mean, decoded - mean, dim=-1).mean(0)


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_a_bias_of_a_hundred_norms_on_keys_leaves_the_centred_keys_as_faithful(settings: dict) -> None:
    kv = KeysValues(*(tensor.float() for tensor in random_kv(TOKENS, 3)))
    varying = kv.keys - kv.keys.mean(0)
    bias = 100 * varying.norm(dim=-1).median() * torch.ones(1, *varying.shape[1:])
    found = []
    for biased in (varying, varying + bias):
        # A bf16 store is exact for the bf16 tensor; what rounding to bf16 loses is lost before.
        stored = biased.bfloat16().float() if settings["kind"] == "bf16" else biased
        found.append(centred_cosine(stored, round_trip(settings, KeysValues(stored, kv.values)).keys))
    plain, with_bias = found
    assert (with_bias > plain - 2e-4).all()


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_a_constant_channel_and_a_constant_head_come_back(settings: dict) -> None:
    keys, values = (tensor.float().clone() for tensor in random_kv(TOKENS, 3))
    keys[:, 0, 0, 3] = 731.25
    values[:, 1, 1] = 2.5
    decoded = round_trip(settings, KeysValues(keys, values))
    torch.testing.assert_close(decoded.keys[:, 0, 0, 3].float(), keys[:, 0, 0, 3], rtol=4e-3, atol=0)
    if settings["kind"] != "int4":  # there, heads of 8 dimensions share the scale of a token's values
        torch.testing.assert_close(decoded.values[:, 1, 1].float(), values[:, 1, 1], rtol=2e-2, atol=0)


@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_decoding_a_part_equals_a_part_of_the_decoded(settings: dict) -> None:
    kv, info = random_kv(200, 5), facts(200)
    codec = codec_of(settings, GEOMETRY)
    if codec.calibration_tokens:
        codec.calibrate(calibration(TOKENS))
    arrays = codec.encode(kv, info)
    whole = codec.decode(arrays, 0, info)
    for start, stop in ((0, 64), (70, 131), (63, 65), (199, 200)):
        rows = {
            name: arrays[name][start // spec.tokens_per_row : -(-stop // spec.tokens_per_row)]
            for name, spec in codec.arrays.items()
        }
        part = codec.decode(rows, start % 64, TokenInfo(*(fact[start:stop] for fact in info)))
        for a, b in zip(part, whole, strict=True):
            torch.testing.assert_close(a, b[start:stop], rtol=0, atol=1e-4)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_symbols_survive_their_bytes(alphabet: Any) -> None:
    symbols = torch.randint(-alphabet.limit, alphabet.limit + 1, (50, 11)).float()
    packed = alphabet.pack(symbols)
    assert packed.shape == (50, -(-11 // alphabet.per_byte))
    assert torch.equal(alphabet.unpack(packed, 11), symbols)


@pytest.mark.parametrize("target", [0.95, 0.99])
def test_every_head_reaches_the_target_cosine_at_fewer_bits_for_a_lower_target(target: float) -> None:
    kv = random_kv(4 * TOKENS, 3)
    decoded = round_trip({"kind": "transform", "target_cos": target}, kv)
    for exact, tensor in zip(kv, decoded, strict=True):
        assert (centred_cosine(exact, tensor) > target - 0.001).all()


def test_a_target_size_is_met_and_one_below_the_parameters_is_refused() -> None:
    kv, info = random_kv(4 * TOKENS, 3), facts(4 * TOKENS)
    first = KeysValues(*(tensor[:IDS, :1] for tensor in kv))
    sample = Calibration(kv, info, torch.arange(IDS), first, 400_000)
    sizes = []
    for ratio in (0.05, 0.1):
        codec = codec_of({"kind": "transform", "target_ratio": ratio}, GEOMETRY)
        codec.calibrate(sample)
        stream = sum(len(Zstd(1).encode(array.numpy())) for array in codec.encode(kv, info).values())
        parameters = sum(array.nbytes for array in codec.parameters().values())
        sizes.append(stream / len(kv.keys) / 192 + parameters / 400_000 / 192)  # 96 channels of 2 bytes
        assert 0.6 * ratio < sizes[-1] < 1.05 * ratio
    assert sizes[0] < sizes[1]
    with pytest.raises(UserError, match=r"below what a store without any component takes"):
        codec_of({"kind": "transform", "target_ratio": 0.02}, GEOMETRY).calibrate(sample._replace(total_tokens=400))


def test_a_cosine_out_of_reach_is_refused() -> None:
    with pytest.raises(UserError, match=r"choose kv\.codec int8 or bf16"):
        codec_of({"kind": "transform", "target_cos": 0.9999999}, GEOMETRY).calibrate(calibration(TOKENS))


def test_the_first_layer_costs_a_table_where_the_id_determines_it() -> None:
    ids = torch.arange(4 * TOKENS) % IDS
    kv = KeysValues(*(tensor.float().clone() for tensor in random_kv(4 * TOKENS, 3)))
    table = KeysValues(*(tensor[:IDS, 0].clone() for tensor in random_kv(IDS, 9)))
    for tensor, of_ids in zip(kv, table, strict=True):
        tensor[:, 0] = of_ids[ids].float()
    info = facts(4 * TOKENS)._replace(id=ids)
    codec = codec_of({"kind": "transform", "target_cos": 0.9}, GEOMETRY)
    codec.calibrate(Calibration(kv, info, torch.arange(IDS), KeysValues(*(x[:, None] for x in table)), 10**6))
    assert codec.parameters()["exact_codes"].shape == (IDS, 2 * 2 * 8)
    decoded = codec.decode(codec.encode(kv, info), 0, info)
    assert (centred_cosine(kv.keys[:, 0:1], decoded.keys[:, 0:1]) > 0.9995).all()
    shifted = Calibration(
        kv, info._replace(id=ids.roll(1)), torch.arange(IDS), KeysValues(*(x[:, None] for x in table)), 10**6
    )
    codec.calibrate(shifted)
    assert codec.parameters()["exact_codes"].shape[1] == 0


def test_dynamic_programming_finds_the_best_of_all_choices() -> None:
    generator = np.random.default_rng(0)
    units, distortion = generator.integers(0, 5, (5, 4)), generator.random((5, 4))
    units[:, 0], distortion[:, 0] = 0, 2.0
    best, _ = _solve(units, distortion)
    for budget in range(len(best)):
        reachable = [
            sum(distortion[row, option] for row, option in enumerate(choice))
            for choice in itertools.product(range(4), repeat=5)
            if sum(units[row, option] for row, option in enumerate(choice)) <= budget
        ]
        assert best[budget] == pytest.approx(min(reachable))


def test_a_lower_distortion_never_takes_fewer_bits_and_is_reached() -> None:
    deviation = torch.logspace(0, -2, 40)
    sample = torch.randn(4000, 40) * deviation
    allocator = Allocator(sample, deviation)
    before = -1.0
    for distortion in (1.0, 0.3, 0.1, 0.01):
        options = allocator.choose(distortion)
        bits = sum(8 / option.alphabet.per_byte if option.alphabet else 0 for option in options)
        assert bits >= before
        before = bits
        error = 0.0
        for column, option in enumerate(options):
            part, step = sample[:, column], option.step * deviation[column]
            rounded = (
                (part / step).round().clamp(-option.alphabet.limit, option.alphabet.limit) * step
                if option.alphabet
                else 0
            )
            error += float((part - rounded).square().mean())
        assert error <= distortion


# Layers, heads and dimensions that no power of two divides, down to one of each.
ODD = [(1, 1, 1), (2, 1, 5), (3, 3, 7), (2, 5, 9), (1, 7, 33), (1, 3, 40)]


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("settings", CODECS_UNDER_TEST)
def test_any_number_of_layers_heads_and_dimensions_is_coded(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    generator, tokens = torch.Generator().manual_seed(1), 1001
    kv = KeysValues(*(torch.randn(tokens, *shape, generator=generator).bfloat16() for _ in range(2)))
    geometry = Geometry(*shape)
    decoded = round_trip(settings, kv, geometry)
    for exact, found in zip(kv, decoded, strict=True):
        assert found.shape == (tokens, *shape)
        error = (found.float() - exact.float()).square().mean() / exact.float().square().mean()
        assert error < 0.05
    codec = codec_of(settings, geometry)
    if settings["kind"] != "transform":
        for name, array in codec.encode(kv, facts(tokens)).items():
            assert array.shape[1:] == codec.arrays[name].row
