"""The numbers behind the verdict: of each comparison if they are few, else how many show what."""

from collections.abc import Mapping, Sequence

from kava.report.clean import grouped
from kava.report.comparisons import BASE
from kava.report.format import listed, p_equals
from kava.report.results import ArmRow
from kava.report.statistics.compare import Comparison
from kava.report.verdict.conclusion import (
    NAMED,
    among_kv,
    in_words,
    not_anew,
    not_shown_to_beat,
    sentence,
    structure,
)
from kava.report.verdict.findings import FEW, Findings

HERE = " in these students only"


def of_base(rows: Sequence[Comparison]) -> list[str]:
    """How the arms stand against the base student: with numbers if they are few, else counted."""
    known = [(row, row.rates[1]) for row in rows if row.tested and row.rates]
    if not known:
        return []
    scale = known[0][0].scale
    begin = f"measured from {BASE} ({scale.value(known[0][1])}),"
    if len(known) > FEW:
        higher = sum(row.shown and (row.delta or 0.0) > 0 for row, _ in known)
        lower = sum(row.shown and (row.delta or 0.0) < 0 for row, _ in known)
        alike = len(known) - higher - lower
        return [
            f"{begin} of {len(known)} arms {higher} scored higher in these students, {lower} lower, and {alike} "
            f"show{'s' if alike == 1 else ''} no difference"
        ]
    said = []
    for row, _ in known:
        doubtful = "" if row.shown else ", no difference shown"
        difference = f"{scale.difference(row.delta)} {scale.unit}"
        said.append(f"{difference} for {row.a} ({scale.interval(row.ci95 or ())}{doubtful})")
    return [f"{begin} these students stand at {listed(said)}"]


def each(found: Findings, arms: Mapping[str, ArmRow]) -> list[str]:
    """The numbers of every comparison, and what the headline leaves out."""
    left_out = [name for name in found.unshown if name not in found.missed_in_headline]
    lines = [not_shown_to_beat(left_out, found)] if found.better and left_out else []
    across, among, controls = (
        [_numbers(row, arms, row.winner or row.a) for row in rows]
        for rows in (found.across, found.between, found.among_controls)
    )
    against = [_numbers(row, arms, name) for name, rows in found.against.items() for row in rows]
    if found.missed and not found.better and not found.ahead and among:
        among[0] = f"among the KV arms: {sentence(among_kv(found)[1])}, {among[0]}"
    return lines + across + against + among + [f"among the controls: {line}" for line in controls]


def _numbers(row: Comparison, arms: Mapping[str, ArmRow], first: str) -> str:
    """The row's numbers in words, turned round where needed so that `first` is named first."""
    assert row.delta is not None, f"{row.a} and {row.b} were not compared"
    assert row.rates, f"{row.a} and {row.b} have no means"
    assert row.ci95, f"{row.a} and {row.b} were not tested"
    scale = row.scale
    a, b, sign = (row.a, row.b, 1) if row.a == first else (row.b, row.a, -1)
    rates = row.rates[::sign]
    # The means of the table are over other seeds than the difference, or left out.
    apart = not row.complete or any(set(arms[name].seeds) != set(row.seeds) for name in (a, b))
    over = f" over {'seeds' if len(row.seeds) > 1 else 'seed'} {listed(row.seeds)}" if apart else ""
    detectable = row.minimal_detectable_effect
    missed = f"; {scale.size(detectable)} {scale.unit} would be shown with 80% power"
    return (
        f"{row.metric.label} is {scale.value(rates[0])} for {a} and {scale.value(rates[1])} for {b}{over}, a "
        f"difference of {scale.difference(sign * row.delta)} {scale.unit} ({scale.interval(row.ci95, sign)}, "
        f"Holm-adjusted {p_equals(row.p_value_holm, row.at_floor)}"
        f"{'' if row.shown or detectable is None else missed})"
    )


def counts(found: Findings) -> list[str]:
    """Counts by control, then what the comparisons of KV arms and of controls with each other show, by name."""
    said = [sentence([structure(found)[1]])] if found.pairs and not found.experiments else []
    rest = [row for row in found.between if found.experiments or row not in found.pairs]
    if found.experiments and len(rest) <= NAMED:
        rest = []  # The headline names them all.
    lines = [_against(control, found) for control in found.controls]
    return [line for line in lines if line] + _among("KV arms", rest, said) + _among("controls", found.among_controls)


def _against(control: str, found: Findings) -> str:
    """How many KV arms are better than the control, which worse; empty where none was compared with it."""
    met = [(name, row) for name, rows in found.against.items() for row in rows if control in (row.a, row.b)]
    if not met:
        return ""
    names = grouped((_standing(row, name), name) for name, row in met)
    alike = len(names.pop("", []))
    parts = [] if "better" in names else ["none is shown to be better"]
    ways = ("higher", "lower")[:: met[0][1].metric.sign]
    for standing in ("better", ways[0] + HERE, "worse", ways[1] + HERE):
        if who := names.get(standing):
            parts.append(f"{len(who)} {'is' if len(who) == 1 else 'are'} {standing} ({', '.join(who)})")
    if alike:
        others = "the other " if alike < len(met) else ""
        parts.append(f"{others}{alike} show{'s' if alike == 1 else ''} no difference")
    return f"of {_count(len(met), 'KV arm')} compared with {control}, {listed(parts)}"


def _standing(row: Comparison, name: str) -> str:
    """How the arm stands against its control; empty where no difference is shown."""
    if not row.shown:
        return ""
    ahead = row.winner == name
    if row.repeated:
        return "better" if ahead else "worse"
    return ("higher" if ahead == row.metric.higher_is_better else "lower") + HERE


def _among(arms: str, rows: Sequence[Comparison], said: Sequence[str] = ()) -> list[str]:
    """What comparisons of `arms` with each other show, after what is `said` already."""
    passing = [row for row in rows if row.unrepeated]
    said = [*said, *(in_words(row) for row in rows if row.repeated)]
    if passing:
        said.append(f"{listed([in_words(row) for row in passing])} in these students ({not_anew(passing)})")
    if alike := sum(not row.shown for row in rows):
        said.append(f"no difference shown in {_count(alike, 'other comparison' if said else 'comparison')}")
    return [f"among the {arms}, {listed(said)}"] if said else []


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
