"""Outcome and headline of the verdict, by the rules of `kava.report.verdict.verdict`."""

from collections.abc import Sequence
from typing import NamedTuple

from kava.report.clean import grouped
from kava.report.format import capital, listed, p_equals
from kava.report.statistics.compare import SEED_MISSING, Comparison, seeds_in_words
from kava.report.verdict.findings import (
    FLAT_WINS,
    NO_CONTROL_BEATEN,
    NO_DIFFERENCE,
    STRUCTURED_WINS,
    TOO_FEW_SEEDS,
    Findings,
    keeps_structure,
)
from kava.tasks.metric import Metric

# Names, or comparisons, that a clause of the headline can hold; of more it says how many.
NAMED = 4


class Clause(NamedTuple):
    """What is said, and in `why` the reason for which it is said of these students alone; empty if it is not."""

    text: str
    why: str = ""


def sentence(clauses: Sequence[Clause]) -> str:
    """Clauses as one sentence; a reason that several have is said after the last of them."""
    last = {clause.why: i for i, clause in enumerate(clauses)}
    return "; ".join(f"{c.text} ({c.why})" if c.why and last[c.why] == i else c.text for i, c in enumerate(clauses))


def conclude(found: Findings, metric: Metric) -> tuple[str, str]:
    """Outcome and headline: whether distilling helped, against the controls, and by how much; then the arms' own order.

    A control that is not beaten comes before all else. In a report over experiments, what differs between arms of the
    same name comes first.
    """
    outcome, among = among_kv(found)
    same_name = _across(found)
    if not found.against:
        return outcome, capital(sentence([*same_name, *among]), metric)
    if found.better:
        controls = [Clause(victories(found, found.better, by_how_much=True))]
        if outcome not in (STRUCTURED_WINS, FLAT_WINS):
            outcome = victories(found, found.better)
    elif found.ahead:
        rows = [row for name in found.ahead for row in found.against[name]]
        controls = [Clause(victories(found, found.ahead, by_how_much=True), not_anew(rows))]
        outcome = TOO_FEW_SEEDS if any(row.few_seeds for row in rows) else NO_CONTROL_BEATEN
    else:
        nothing = Clause(f"No KV arm is shown to beat {found.what_is_beaten}")
        return NO_CONTROL_BEATEN, sentence([nothing, *same_name])
    if missed := found.missed_in_headline:
        clauses = [Clause(not_shown_to_beat(missed, found)), *controls, *same_name, *among]
    elif outcome == NO_CONTROL_BEATEN:
        clauses = [*controls, *same_name, *among]
    else:
        clauses = [*same_name, *controls, *among]
    return outcome, capital(sentence(clauses), metric)


def not_shown_to_beat(names: Sequence[str], found: Findings) -> str:
    """In words, with the number of arms in place of many names."""
    who = listed(names) if len(names) <= NAMED else f"{len(names)} of the KV arms"
    return f"{who} {'is' if len(names) == 1 else 'are'} not shown to beat {found.what_is_beaten}"


def _across(found: Findings) -> list[Clause]:
    """What arms of the same name in two experiments show, with their differences."""
    differing = [row for row in found.across if row.shown]
    alike = [row for row in found.across if not row.shown]
    clauses = [_by_points(row) for row in differing]
    if len(differing) > NAMED:
        among = f"{len(differing)} of {len(found.across)} arms scored otherwise than those of the same name"
        clauses = [Clause(f"{among} in these students")]
    if len(alike) > NAMED:
        others = "other " if differing else ""
        return [*clauses, Clause(f"no difference shown in {len(alike)} {others}pairs of arms of the same name")]
    for row in alike:
        difference = f"{row.scale.difference(row.delta)} {row.scale.unit}, {row.scale.interval(row.ci95 or ())}"
        clauses.append(Clause(f"no difference shown between {row.a} and {row.b}, {difference}"))
    return clauses


def _by_points(row: Comparison) -> Clause:
    """A difference between experiments: a claim if it is repeated, else what these students scored."""
    delta, edges = row.delta or 0.0, row.ci95 or ()
    size = f"{row.scale.size(abs(delta))} {row.scale.unit}"
    if row.repeated:
        return Clause(f"{in_words(row)} by {size}, {row.scale.interval(edges, 1 if delta > 0 else -1)}")
    text = f"{row.a} scored {size} {'higher' if delta > 0 else 'lower'} than {row.b} in these students"
    return Clause(f"{text}, {row.scale.interval(edges)}", not_anew([row]))


def among_kv(found: Findings) -> tuple[str, list[Clause]]:
    """Outcome and clauses of the pairs about structure; without such, of all comparisons of KV arms.

    Where no KV arm was compared at all, those of the controls take their place. There is no clause where KV arms were
    compared with controls alone. Arms of several experiments are always named, since each has a `structured`.
    """
    if found.pairs and not found.experiments:
        outcome, clause = structure(found)
        return outcome, [clause]
    if not found.between and found.against:
        return NO_DIFFERENCE, []
    rows = found.between or found.among_controls
    outcome, clauses = differences(rows, found.experiments)
    if not clauses and rows:
        among = " among the KV arms" if found.between and found.against else ""
        clauses = [Clause(f"{NO_DIFFERENCE}{among}")]
    return structure(found)[0] if found.pairs else outcome, clauses


def structure(found: Findings) -> tuple[str, Clause]:
    """Outcome and clause of the pairs of an aligner that keeps structure and one that flattens it."""
    kept = {row.winner and keeps_structure(found.configs[row.winner]) for row in found.pairs}
    if kept == {None}:
        return NO_DIFFERENCE, Clause("no difference shown between structured and flat")
    if len(kept) > 1:
        return NO_DIFFERENCE, Clause("no consistent difference shown between structured and flat")
    if all(row.repeated for row in found.pairs):
        outcome = STRUCTURED_WINS if kept == {True} else FLAT_WINS
        return outcome, Clause(outcome)
    first, second = ("structured", "flat") if kept == {True} else ("flat", "structured")
    scored = found.pairs[0].scale.scored
    return _unrepeated(found.pairs), Clause(f"{first} {scored} than {second} in these students", not_anew(found.pairs))


def differences(rows: Sequence[Comparison], name_all: bool = False) -> tuple[str, list[Clause]]:
    """Outcome and clauses of comparisons that are about nothing in particular; none if they show no difference.

    Those that show none are named where there is nothing else to say or `name_all` asks for it, and few they are.
    """
    lasting = [in_words(row) for row in rows if row.repeated]
    passing = [row for row in rows if row.unrepeated]
    alike = [f"between {row.a} and {row.b}" for row in rows if not row.shown]
    clauses = [Clause(text) for text in lasting]
    if passing:
        clauses.append(Clause(f"{listed([in_words(row) for row in passing])} in these students", not_anew(passing)))
    if alike and len(alike) <= NAMED and (name_all or not clauses):
        clauses.append(Clause(f"no difference shown {listed(alike)}"))
    return "; ".join(lasting) or (_unrepeated(passing) if passing else NO_DIFFERENCE), clauses


def _unrepeated(rows: Sequence[Comparison]) -> str:
    """Outcome of differences that are shown of these students, but not repeated."""
    return TOO_FEW_SEEDS if any(row.few_seeds for row in rows) else NO_DIFFERENCE


def not_anew(rows: Sequence[Comparison]) -> str:
    """Why differences of these students say nothing of the arms, that is, of students trained anew."""
    kinds = grouped((len(row.seeds) if row.complete else 0, row) for row in rows if row.unrepeated)
    whys = []
    for seeds, alike in kinds.items():
        if not seeds:
            why = SEED_MISSING
        elif alike[0].few_seeds:
            if len(kinds) == 1:
                return f"with {seeds_in_words(seeds)} this shows nothing about the arms"
            why = seeds_in_words(seeds)
        else:
            largest = max(row.seed_level.p_value_holm or 0.0 for row in alike if row.seed_level)
            why = f"Holm-adjusted {p_equals(largest)} over {seeds} seeds"
        whys.append(f"{why} for {pairs_in_words(alike)}" if len(kinds) > 1 else why)
    return f"not shown for students trained anew: {'; '.join(whys)}"


def victories(found: Findings, names: Sequence[str], by_how_much: bool = False) -> str:
    """The arms `names`, all `better` or all `ahead`, beat the controls they met.

    Arms that met the same controls are named together.
    """
    said = []
    for controls, winners in grouped((found.met_by(name), name) for name in names).items():
        rows = [row for name in winners for row in found.against[name]]
        if all(row.repeated for row in rows):
            text = f"{listed(winners)} beat{'s' if len(winners) == 1 else ''} {listed(controls)}"
        else:
            text = f"{listed(winners)} {rows[0].scale.scored} than {listed(controls)} in these students,"
        said.append(f"{text}{_by_how_much(rows, winners)}" if by_how_much else text)
    return "; ".join(said)


def _by_how_much(rows: Sequence[Comparison], winners: Sequence[str]) -> str:
    """The winners' differences from the controls they met: each of few with one control, else the range."""
    scale, gains = rows[0].scale, [abs(row.delta or 0.0) for row in rows]
    each, least, most = [scale.size(gain) for gain in gains], scale.size(min(gains)), scale.size(max(gains))
    if least == most:
        return f" by {least} {scale.unit}"
    if len(rows) == len(winners) <= NAMED:
        return f" by {listed(each)} {scale.unit}"
    return f" by {least} to {most} {scale.unit}"


def in_words(row: Comparison) -> str:
    """A difference: that of these students alone has no word of a claim."""
    better, other = row.ordered
    return f"{better} beats {other}" if row.repeated else f"{better} {row.scale.scored} than {other}"


def pairs_in_words(rows: Sequence[Comparison]) -> str:
    """The arms that were compared: a and b, c and d."""
    return ", ".join(f"{row.a} and {row.b}" for row in rows)
