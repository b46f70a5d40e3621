"""From a slice of what prediction leaves: principal components, and as many bits as the target needs."""

import math
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from numcodecs import Zstd
from torch import Tensor

from kava.errors import UserError
from kava.kv import Geometry
from kava.store.codecs.allocation import Allocator, Option
from kava.store.codecs.components import FINE, Components
from kava.store.codecs.symbols import ALPHABETS

BLOCK_CHANNELS: Final = 4096
SEARCH_STEPS: Final = 14
LEAST_DISTORTION, MOST_DISTORTION = 1e-5, 1.0
RAW_BITS: Final = 16


class Slice(NamedTuple):
    """KV of some tokens, `[T, C]`: without its mean, of which the cosine is taken, and what prediction leaves of it."""

    centred: Tensor
    left: Tensor


class _Spectrum(NamedTuple):
    """Every principal component by falling variance: block and column `[n]`, deviation `[n]`; the blocks' bases."""

    block: Tensor
    column: Tensor
    deviation: Tensor
    bases: tuple[Tensor, ...]


def fit_components(
    fitted: Slice,
    held_out: Slice,
    geometry: Geometry,
    target_cos: float | None,
    target_ratio: float | None,
    total_tokens: int,
    other_bytes: int,
    fine_share: float,
) -> Components:
    """Choose components, steps and alphabets.

    Every head is scaled to unit variance, so that an error spread evenly over channels costs each head the same
    cosine. The squared error is then lowered until the target is met, as measured on tokens that nothing was fitted to.

    Parameters
    ----------
    fitted
        Tokens that scales and components are computed from.
    held_out
        Tokens on which rates and fidelity are measured.
    geometry
        Shape of the KV.
    target_cos, target_ratio
        One of them; see `Transform`.
    total_tokens, other_bytes
        Tokens of the store, and its bytes besides the components and their parameters.
    fine_share
        Share of tokens that are kept finer.

    Raises
    ------
    UserError
        The target is out of reach.
    """
    heads = 2 * geometry.layers * geometry.kv_heads
    deviation = fitted.centred.unflatten(1, (heads, -1)).square().mean((0, 2)).sqrt()
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)
    channel_scale = scale.repeat_interleave(geometry.head_dim)
    spectrum = _decompose(fitted.left / channel_scale, geometry)
    sample, exact = held_out.left, held_out.centred / channel_scale
    everything = _components(spectrum, scale, [Option(1.0, ALPHABETS[-1])] * len(spectrum.deviation))
    allocator = Allocator(everything.rotate(sample), spectrum.deviation)

    def allocate(distortion: float) -> Components:
        return _components(spectrum, scale, allocator.choose(distortion * sample.shape[1]))

    def ratio(components: Components) -> float:
        raw = sample.shape[1] * RAW_BITS / 8
        packed = components.pack(components.quantise(components.rotate(sample)))
        stream = sum(len(Zstd(1).encode(x.cpu().numpy())) for x in packed.values()) / len(sample)
        stream += fine_share * FINE.bytes_for(len(components))
        fixed = other_bytes + sum(array.nbytes for array in components.parameters().values())
        return (stream + fixed / total_tokens) / raw

    def worst_cosine(components: Components) -> float:
        symbols = components.quantise(components.rotate(sample))
        error = sample / channel_scale - components.restore(symbols) / channel_scale
        kept, decoded = (x.unflatten(1, (heads, -1))[:, scale.isfinite()] for x in (exact, exact - error))
        cosine = torch.nn.functional.cosine_similarity(kept, decoded, dim=-1).mean(0)
        return float(cosine.min()) if len(cosine) else 1.0

    # The largest distortion that reaches the cosine, or the smallest that fits the size.
    low, high = math.log(LEAST_DISTORTION), math.log(MOST_DISTORTION)
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        tried = allocate(math.exp(middle))
        finer_would_do = ratio(tried) <= target_ratio if target_ratio else worst_cosine(tried) < (target_cos or 0.0)
        low, high = (low, middle) if finer_would_do else (middle, high)
    if target_ratio:
        found = allocate(math.exp(high))
        if ratio(found) > target_ratio:
            raise UserError(
                f"kv.codec.target_ratio {target_ratio} is below what a store without any component takes "
                f"({ratio(found):.4f} for {total_tokens} tokens: parameters, ids, checksums); raise it"
            )
        return found
    found = allocate(math.exp(low))
    if worst_cosine(found) < (target_cos or 0.0):
        raise UserError(
            f"kv.codec.target_cos {target_cos} is out of reach of the transform ({worst_cosine(found):.6f} at its "
            "finest); lower it, or choose kv.codec int8 or bf16"
        )
    return found


def _decompose(scaled: Tensor, geometry: Geometry) -> _Spectrum:
    """Principal components of blocks of whole heads, at most `BLOCK_CHANNELS` channels each."""
    heads = scaled.shape[1] // geometry.head_dim
    blocks = math.ceil(heads / max(1, BLOCK_CHANNELS // geometry.head_dim))
    bounds = [round(heads * i / blocks) * geometry.head_dim for i in range(blocks + 1)]
    variances, bases = [], []
    for part in scaled.split([b - a for a, b in pairwise(bounds)], dim=1):
        variance, basis = torch.linalg.eigh(part.T @ part / len(part))
        variances.append(variance)
        bases.append(basis)
    block = torch.cat([torch.full_like(v, i, dtype=torch.int64) for i, v in enumerate(variances)])
    column = torch.cat([torch.arange(len(v), device=v.device) for v in variances])
    variance = torch.cat(variances)
    order = variance.argsort(descending=True, stable=True)
    # A direction in which nothing varies is never worth a step; the floor keeps its step from being zero.
    deviation = variance[order].clamp(min=1e-12).sqrt()
    return _Spectrum(block[order], column[order], deviation, tuple(bases))


def _components(spectrum: _Spectrum, scale: Tensor, options: list[Option]) -> Components:
    """Keep the components that have an alphabet, those of one alphabet together."""
    device = spectrum.block.device
    per_byte = torch.tensor([option.alphabet.per_byte if option.alphabet else 0 for option in options], device=device)
    steps = torch.tensor([option.step for option in options], device=device)
    kept = torch.cat([torch.nonzero(per_byte == alphabet.per_byte).flatten() for alphabet in ALPHABETS])
    block, column = spectrum.block[kept], spectrum.column[kept]
    return Components(
        scale=scale,
        bases=tuple(basis[:, column[block == i]].half() for i, basis in enumerate(spectrum.bases)),
        block=block.short(),
        step=steps[kept] * spectrum.deviation[kept],
        per_byte=per_byte[kept].to(torch.uint8),
    )
