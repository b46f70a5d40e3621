"""The question that a report answers, in plain words, from the comparisons that it declares."""

from collections.abc import Mapping, Sequence

from kava.report.clean import flatten
from kava.report.format import listed
from kava.report.inputs import ReportInputs
from kava.report.statistics.compare import Comparison
from kava.report.verdict.findings import Pairs, about_structure

STRUCTURE = "does keeping its structure (layers × heads × time × dim) beat flattening it?"
HELPS = "Does distilling the KV cache help, and "
ALONE = "Does keeping the structure of the KV cache (layers × heads × time × dim) beat flattening it?"
# Pairs, or settings, that a question can name.
NAMED = 3


def question(inputs: ReportInputs, comparisons: Sequence[Comparison]) -> str:
    """What was compared, as one question; empty where nothing was. `comparisons` are the rows of all declared pairs."""
    if inputs.across:
        identical = {(row.a, row.b) for row in comparisons if row.identical}
        return _between_experiments(inputs, inputs.across, [pair for pair in inputs.across if pair not in identical])
    among_kv = [pair for pair in inputs.comparisons if not set(pair) & set(inputs.controls)]
    against = [(a, b) if b in inputs.controls else (b, a) for a, b in inputs.comparisons if (a, b) not in among_kv]
    if any(about_structure(inputs.arms[a], inputs.arms[b]) for a, b in among_kv):
        return f"{HELPS}{STRUCTURE}" if against else ALONE
    if among_kv:
        own = _beats(among_kv)
        return f"{HELPS}{own[0].lower()}{own[1:]}" if against else own
    return _beats(against) if against else ""


def _beats(pairs: Pairs) -> str:
    if len(pairs) <= NAMED:
        return f"Does {listed([f'{a} beat {b}' for a, b in pairs])}?"
    others = list(dict.fromkeys(b for _, b in pairs))
    than = listed(others) if len(others) <= NAMED else "those they are compared with"
    return f"Which of the {len({a for a, _ in pairs})} arms beat {than}?"


def _between_experiments(inputs: ReportInputs, pairs: Pairs, differing: Pairs) -> str:
    """Of arms whose runs differ, by the settings in which they do if both are few."""
    apart = {pair: _settings(inputs, *pair) for pair in differing}
    if not 0 < len(apart) <= NAMED or not all(0 < len(settings) <= NAMED for settings in apart.values()):
        names = list(dict.fromkeys(name.split("/")[0] for pair in pairs for name in pair[::-1]))
        return f"Do arms of the same name score otherwise in {listed(names[1:])} than in {names[0]}?"
    said = [
        f"{_with(a, settings, 0)} score otherwise than {_with(b, settings, 1)}" for (a, b), settings in apart.items()
    ]
    return f"Does {listed(said)}?"


def _with(arm: str, settings: Mapping[str, tuple[object, object]], side: int) -> str:
    return f"{arm} ({', '.join(f'{key} {values[side]}' for key, values in settings.items())})"


def _settings(inputs: ReportInputs, a: str, b: str) -> dict[str, tuple[object, object]]:
    """Settings that both arms have and in which they differ."""
    flat_a, flat_b = flatten(inputs.arms[a]), flatten(inputs.arms[b])
    both = [key for key in flat_a if flat_a[key] is not None and flat_b.get(key) is not None]
    return {key: (flat_a[key], flat_b[key]) for key in both if flat_a[key] != flat_b[key]}
