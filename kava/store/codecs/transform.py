"""`transform`: KV predicted from the token, rotated to its principal components, and quantised where it pays.

The idea is KVTC's (arXiv 2511.01815): remove the mean, decorrelate over layers and heads by PCA, give bits to
components by dynamic programming, and leave the rest to an entropy coder. Here the token id predicts first
(`prediction.py`), symbols are packed for a byte coder (`symbols.py`), and fidelity is a measured target
(`calibration.py`).
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from kava.config.kv import TransformCodec
from kava.data.tokens import Segment
from kava.kv import Geometry, KeysValues
from kava.store.codecs.base import Calibration, Codec, TokenInfo
from kava.store.codecs.calibration import Slice, fit_components
from kava.store.codecs.components import FINE, FINE_ARRAY, Components
from kava.store.codecs.prediction import Predictor

# A quarter of the calibration slice measures what the rest has fitted.
HELD_OUT_SHARE: Final = 4
HELD_OUT_RUN: Final = 64


class Transform(Codec[TransformCodec]):
    """Lossy down to a few per cent of bf16.

    Fidelity is that of the KV of every layer and head on tokens of the calibration slice that nothing was fitted to.
    """

    kind = "transform"
    mixes_heads = True

    def __init__(self, settings: TransformCodec, geometry: Geometry) -> None:
        super().__init__(settings, geometry)
        self.calibration_tokens = settings.calibration_tokens
        self.predictor: Predictor | None = None
        self.arrays = {}

    def calibrate(self, sample: Calibration) -> None:
        channels = _channels(sample.kv)
        # Runs of neighbouring tokens, so that the split falls across examples and not within words.
        held_out = torch.arange(len(channels), device=channels.device) // HELD_OUT_RUN % HELD_OUT_SHARE == 0
        fitted = ~held_out
        predictor, left = Predictor.fit(_part(sample, fitted), channels[fitted], self.settings.first_tokens)
        expected = predictor(TokenInfo(*(fact[held_out] for fact in sample.info)))
        size = sum(array.nbytes for array in predictor.parameters().values()) + sample.other_bytes
        components = fit_components(
            Slice(channels[fitted] - predictor.mean, left),
            Slice(channels[held_out] - predictor.mean, channels[held_out] - expected),
            self.geometry, self.settings.target_cos, self.settings.target_ratio, sample.total_tokens, size,
            float(self._is_fine(sample.info).float().mean()),
        )  # fmt: skip
        self._use(predictor, components)

    def encode(self, kv: KeysValues, info: TokenInfo) -> dict[str, Tensor]:
        assert self.predictor is not None, "not calibrated"
        rotated = self.components.rotate(_channels(kv) - self.predictor(info))
        symbols = self.components.quantise(rotated)
        arrays = self.components.pack(symbols)
        if FINE_ARRAY in self.arrays:
            rest = rotated / self.components.step - symbols  # −0.5 … 0.5 unless clipped
            finer = (rest * FINE.size).round().clamp(-FINE.limit, FINE.limit)
            arrays[FINE_ARRAY] = FINE.pack(finer * self._is_fine(info)[:, None])
        return arrays

    def decode(self, rows: dict[str, Tensor], offset: int, info: TokenInfo) -> KeysValues:
        assert self.predictor is not None, "not calibrated"
        del offset  # a row is a token
        tokens = len(info.id)
        symbols = self.components.unpack(rows, tokens)
        if FINE_ARRAY in self.arrays:
            symbols = symbols + FINE.unpack(rows[FINE_ARRAY][:tokens], len(self.components)) / FINE.size
        channels = self.components.restore(symbols).add_(self.predictor(info))
        layers, heads, dim = self.head_row
        return KeysValues(*channels.reshape(tokens, layers, 2, heads, dim).unbind(2))

    def parameters(self) -> dict[str, np.ndarray]:
        assert self.predictor is not None, "not calibrated"
        return self.predictor.parameters() | self.components.parameters()

    def load_parameters(self, arrays: dict[str, np.ndarray], device: torch.device) -> None:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
        self._use(Predictor.load(tensors), Components.load(tensors))

    def _use(self, predictor: Predictor, components: Components) -> None:
        self.predictor, self.components = predictor, components
        self.arrays = components.arrays(fine=self.settings.first_tokens > 0 or self.settings.fine_answers)

    def _is_fine(self, info: TokenInfo) -> Tensor:
        fine = info.position < self.settings.first_tokens
        return fine | (info.segment == Segment.ANSWER) if self.settings.fine_answers else fine


def _part(sample: Calibration, chosen: Tensor) -> Calibration:
    kv = KeysValues(*(tensor[chosen] for tensor in sample.kv))
    return sample._replace(kv=kv, info=TokenInfo(*(fact[chosen] for fact in sample.info)))


def _channels(kv: KeysValues) -> Tensor:
    """`[T, C]` in fp32, C = layers × {K, V} × heads × dim: the KV of a layer, then that of the next."""
    return torch.stack(kv, dim=2).flatten(1).float()
