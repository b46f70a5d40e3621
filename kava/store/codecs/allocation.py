"""Which step and alphabet each component gets: dynamic programming over measured rates and distortions."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kava.store.codecs.symbols import ALPHABETS, Alphabet

# Steps in standard deviations: half a bit apart, from almost nothing kept to 8 bits.
STEPS = tuple(2.8 * 2 ** (-k / 2) for k in range(14))
# An alphabet may cut off what lies beyond this many standard deviations; its measured cost decides.
REACH = 2.5
GROUPS = 256
UNITS_PER_BIT = 20


@dataclass(frozen=True)
class Option:
    """One way to quantise a component: step in standard deviations, and the alphabet; none at all drops it."""

    step: float
    alphabet: Alphabet | None


def options() -> list[Option]:
    """Dropping, and every step with the two smallest alphabets that reach far enough."""
    found = [Option(0.0, None)]
    for step in STEPS:
        reaching = [a for a in ALPHABETS if (a.limit + 0.5) * step >= REACH]
        found += [Option(step, alphabet) for alphabet in reaching[:2]]
    return found


class Allocator:
    """Rates and distortions of every option, measured on a sample, and the best choice for a given distortion.

    Neighbouring components of like variance share an option, so that the work does not grow with their number.

    Parameters
    ----------
    sample
        Components of some tokens `[T, n]`, ordered by falling variance.
    deviation
        Standard deviation of each component `[n]`.
    """

    def __init__(self, sample: Tensor, deviation: Tensor) -> None:
        self.options = options()
        self.components = sample.shape[1]
        self.per_group = -(-self.components // GROUPS)
        groups = range(0, self.components, self.per_group)
        rate, distortion = np.zeros((len(groups), len(self.options))), np.zeros((len(groups), len(self.options)))
        for row, first in enumerate(groups):
            part = sample[:, first : first + self.per_group]
            sigma = deviation[first : first + self.per_group]
            for column, option in enumerate(self.options):
                rate[row, column], distortion[row, column] = _cost(part, sigma, option)
        units = np.ceil(rate * UNITS_PER_BIT / self.per_group).astype(np.int64)
        self._best, self._choice = _solve(units, distortion)
        self._units = units

    def choose(self, distortion: float) -> list[Option]:
        """Option of each component at the least rate whose summed squared error is at most `distortion`."""
        reached = np.flatnonzero(self._best <= distortion)
        budget = int(reached[0]) if len(reached) else len(self._best) - 1
        chosen: list[Option] = []
        for row in range(len(self._choice) - 1, -1, -1):
            option = int(self._choice[row, budget])
            budget -= int(self._units[row, option])
            chosen = [self.options[option]] * self.per_group + chosen
        return chosen[: self.components]


def quantise_components(components: Tensor, step: Tensor, limit: float) -> Tensor:
    """Nearest multiples of a step, clipped to an alphabet; `[T, n]`, fp32."""
    return (components / step).round().clamp(-limit, limit)


def _cost(part: Tensor, sigma: Tensor, option: Option) -> tuple[float, float]:
    """Bits and mean squared error of a group of components, per token."""
    if option.alphabet is None:
        return 0.0, float(part.double().square().mean(0).sum())
    alphabet, step = option.alphabet, option.step * sigma
    symbols = quantise_components(part, step, alphabet.limit)
    error = float((symbols * step - part).double().square().mean(0).sum())
    own = torch.arange(part.shape[1], device=part.device) * alphabet.size
    counts = torch.bincount((symbols.long() + alphabet.limit + own).flatten(), minlength=alphabet.size * part.shape[1])
    entropy = float(torch.special.entr(counts.double() / len(part)).sum()) / np.log(2)
    # A byte coder spends a bit on a byte, however little it says.
    return max(entropy, part.shape[1] / alphabet.per_byte), error


def _solve(units: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multiple-choice knapsack: least total distortion for every budget, and the option taken at each group."""
    total = int(units.max(1).sum())
    best = np.zeros(total + 1)
    choice = np.zeros((len(units), total + 1), dtype=np.uint8)
    for row in range(len(units)):
        new = np.full(total + 1, np.inf)
        for option in range(units.shape[1]):
            cost = int(units[row, option])
            candidate = np.full(total + 1, np.inf)
            candidate[cost:] = best[: total + 1 - cost] + distortion[row, option]
            better = candidate < new
            new[better], choice[row, better] = candidate[better], option
        best = new
    return best, choice
