"""Numbers as a reader meets them; None is shown as an en dash everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from kava import text
from kava.tasks.metric import Metric

NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits, with a real minus sign."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def integer(value: float | None) -> str:
    """Whole number, thousands separated by a comma."""
    return NONE if value is None else f"{round(value):,}"


def percent(value: float | None) -> str:
    """A share of 1 in per cent with one decimal."""
    return NONE if value is None else f"{100 * value:.1f}%"


def interval(edges: Sequence[float] | None) -> str:
    """Two shares of 1 in per cent."""
    return NONE if edges is None else f"{100 * edges[0]:.1f}–{100 * edges[1]:.1f}%"


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, always signed."""
    if value is None:
        return NONE
    rounded = round(100 * value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def spread(value: float | None) -> str:
    """A standard deviation or error of shares in percentage points, unsigned."""
    return NONE if value is None else f"{100 * value:.1f}"


def probability(value: float | None, bound: bool = False) -> str:
    """A p-value with two significant digits, three decimals around 0.05; `bound` marks one that p is at most."""
    if value is None:
        return NONE
    if value < 0.0001:
        return "< 0.0001"
    return f"{'≤ ' if bound else ''}{value:.3f}" if 0.01 <= value < 0.1 else f"{'≤ ' if bound else ''}{value:.2g}"


def p_equals(value: float | None, bound: bool = False) -> str:
    """As in a sentence: p = 0.012, p ≤ 0.0002, p < 0.0001."""
    said = probability(value, bound)
    return f"p {said}" if said[0] in "≤<" else f"p = {said}"


def duration(seconds: float | None) -> str:
    """Seconds as the unit that a person would choose."""
    if seconds is None:
        return NONE
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def mebibytes(value: float | None) -> str:
    """Memory in MiB, or in GiB from 1024 MiB on."""
    if value is None:
        return NONE
    return f"{value / 1024:.2f} GiB" if value >= 1024 else f"{value:.0f} MiB"


def size(bytes_: float | None) -> str:
    """Bytes on disk in the decimal unit that `kava store ls` has too."""
    return NONE if bytes_ is None else text.size(bytes_)


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class Scale:
    """How numbers of a metric are written: shares in per cent and points, others as they are and in their unit."""

    metric: Metric

    @property
    def unit(self) -> str:
        """Of a difference."""
        return "points" if self.metric.proportion else self.metric.unit

    @property
    def title(self) -> str:
        """The metric's label where a sentence or a column begins."""
        return self.metric.label[:1].upper() + self.metric.label[1:]

    @property
    def scored(self) -> str:
        """What the better of two models did: scored higher, or a lower NLL, than the other."""
        if self.metric.proportion:
            return "scored higher" if self.metric.higher_is_better else "scored lower"
        return f"scored a {'higher' if self.metric.higher_is_better else 'lower'} {self.metric.label}"

    def value(self, value: float | None) -> str:
        """A mean."""
        return percent(value) if self.metric.proportion else number(value)

    def edges(self, edges: Sequence[float] | None) -> str:
        """The two ends of an interval or a range of means."""
        if self.metric.proportion or edges is None:
            return interval(edges)
        return f"{number(edges[0])}–{number(edges[1])}"

    def difference(self, value: float | None) -> str:
        """Of two means, always signed."""
        if self.metric.proportion or value is None:
            return points(value)
        return "0.000" if round(value, 3) == 0 else f"{value:+.3f}".replace("-", "−")

    def size(self, value: float | None) -> str:
        """Of a difference, a standard deviation or an error: unsigned."""
        return spread(value) if self.metric.proportion else number(value)

    def interval(self, edges: Sequence[float], sign: int = 1) -> str:
        """Of a difference, in a sentence; with a `sign` of −1 of the other way round."""
        low, high = sorted(sign * edge for edge in edges)
        return f"95% interval {self.difference(low)} to {self.difference(high)}"


def capital(said: str, metric: Metric) -> str:
    """The first letter in upper case where it begins with an ordinary word; a name is shown as it is."""
    # With these words begin the clauses of a verdict that do not begin with a name.
    openings = ("the ", "no difference shown", "no consistent difference", f"{metric.label} is ", "among the ",
                "identical, ", "measured from ", "of ")  # fmt: skip
    return said[:1].upper() + said[1:] if said.startswith(openings) else said
