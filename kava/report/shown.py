"""What the declared comparisons show, before it is put into words.

A comparison can show two things. *Shown*: the trained students differ on the questions (Holm-adjusted p under 0.05).
*Repeated*: shown, and the paired t-test over at least three seeds says that students trained anew would differ too
(p after Holm's correction of its own), and none of the declared seeds is missing. Without that correction, three
comparisons of equal arms whose accuracy has a standard deviation of 6 points over seeds, as the demo's have, give a
claim in 12% of experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.effects import ALPHA
from kava.report.statistics import RESAMPLES

ENOUGH_SEEDS = 3
# Comparisons whose numbers a sentence can hold.
FEW = 6
# A two-sided permutation test that draws its sign patterns can give no smaller p.
PERMUTATION_FLOOR = 2 / (RESAMPLES + 1)

STRUCTURED = "structured beats flat"
FLAT = "flat beats structured"
NO_DIFFERENCE = "no difference shown"
NO_CONTROL_BEATEN = "no KV arm beats its control"
SEED_MISSING = "a declared seed is missing"
TOO_FEW_SEEDS = "these students differ; too few seeds to show that it repeats"

Row = Mapping[str, Any]


def winner_of(row: Row) -> str | None:
    """The arm whose trained students are shown to be better, None if the row shows no difference."""
    if row["p_value_holm"] is None or row["p_value_holm"] >= ALPHA or row["delta"] == 0:
        return None
    return outcome_of(row)[0]


def outcome_of(row: Row) -> tuple[str, str]:
    """The better arm and the other one of a comparison."""
    return (row["a"], row["b"]) if row["delta"] > 0 else (row["b"], row["a"])


def shown(row: Row) -> bool:
    """Whether these students are shown to differ."""
    return winner_of(row) is not None


def too_few_seeds(rows: Sequence[Row]) -> bool:
    """Whether any of the comparisons has fewer seeds than a test over them needs."""
    return any(len(row["seeds"]) < ENOUGH_SEEDS for row in rows)


def repeated(row: Row) -> bool:
    """Whether a shown difference is also shown for students trained anew.

    That is, in the t-test over at least 3 seeds, all those that both arms declare, with a Holm-adjusted p of at most
    0.05. Where a run of a seed failed, the others may be those that went well.
    """
    if not shown(row) or row["seed_level"] is None or too_few_seeds([row]) or not row["complete"]:
        return False
    p_value = row["seed_level"]["p_value_holm"]
    # Without a p, every seed has the same difference, and it is not zero where the row shows one: t is infinite.
    return p_value is None or p_value <= ALPHA


def unrepeated(row: Row) -> bool:
    """Whether a difference is shown of these students alone."""
    return shown(row) and not repeated(row)


def at_floor(row: Row) -> bool:
    """Whether no sign pattern drawn was as extreme, so that p is an upper bound."""
    return row["p_value"] is not None and row["p_value"] <= PERMUTATION_FLOOR * (1 + 1e-9)


def doubt(row: Row) -> str | None:
    """What limits a difference that is shown of these students alone, or lacks a seed; None for any other row."""
    if not unrepeated(row):
        return None if row["complete"] or not tested(row) else SEED_MISSING
    if not row["complete"]:
        return f"differs in these students; {SEED_MISSING}"
    seeds = len(row["seeds"])
    if seeds >= ENOUGH_SEEDS:
        return "differs in these students; not shown to repeat over seeds"
    return f"differs in these students; {seeds_in_words(seeds)} cannot show that it repeats"


def seeds_in_words(number: int) -> str:
    """As in a sentence: one seed, 3 seeds."""
    return "one seed" if number == 1 else f"{number} seeds"


def pairs_in_words(rows: Sequence[Row]) -> str:
    """The arms that were compared: a and b, c and d."""
    return ", ".join(f"{row['a']} and {row['b']}" for row in rows)


def same_runs_in_words(rows: Sequence[Row]) -> str:
    """The arms whose runs are the same."""
    return f"identical, and so not compared, as nothing that they depend on differs: {pairs_in_words(rows)}"


@dataclass(frozen=True)
class Shown:
    """The comparisons that could be made, sorted by what they compare.

    Attributes
    ----------
    against
        KV arm → its comparisons with controls.
    across
        Comparisons of arms of the same name in two experiments, both KV arms or both controls.
    experiments
        Whether arms are of several experiments, which then stand in their names.
    between
        Other comparisons of two KV arms.
    pairs
        Those of them between a `flat*` and a `structured` aligner whose arms differ in nothing else.
    among_controls
        Other comparisons of two controls.
    better
        KV arms that beat, repeatedly, all controls they were compared with.
    ahead
        KV arms not among `better` whose trained students are shown to beat those of all these controls.
    missed
        The other keys of `against`.
    controls
        Names of the control arms.
    """

    against: dict[str, list[Row]]
    across: list[Row]
    experiments: bool
    between: list[Row]
    pairs: list[Row]
    among_controls: list[Row]
    better: list[str]
    ahead: list[str]
    missed: list[str]
    controls: Sequence[str]

    def met_by(self, name: str) -> tuple[str, ...]:
        """The controls that a KV arm was compared with, in their order."""
        others = {row["b"] if row["a"] == name else row["a"] for row in self.against[name]}
        return tuple(control for control in self.controls if control in others)

    @property
    def what_is_beaten(self) -> str:
        """In words: one control, or all of those that an arm met."""
        return "all its controls" if any(len(self.met_by(name)) > 1 for name in self.against) else "its control"


def sort_out(
    rows: Sequence[Row],
    controls: Sequence[str],
    configs: Mapping[str, Mapping[str, Any]],
    across: Sequence[tuple[str, str]] | None = None,
) -> Shown:
    """Sort `rows`, all of which were tested; `configs` is arm → its configuration.

    `across` are the pairs of arms of the same name in two experiments; None in the report of one experiment's run.
    """
    against: dict[str, list[Row]] = {}
    sorted_rows: dict[int, list[Row]] = {0: [], 2: []}
    same_name: list[Row] = []
    for row in rows:
        kv = [name for name in (row["a"], row["b"]) if name not in controls]
        if len(kv) == 1:
            against.setdefault(kv[0], []).append(row)
        elif (row["a"], row["b"]) in (across or ()):
            same_name.append(row)
        else:
            sorted_rows[len(kv)].append(row)
    between = sorted_rows[2]
    won = [name for name, met in against.items() if all(winner_of(row) == name for row in met)]
    better = [name for name in won if all(repeated(row) for row in against[name])]
    ahead = [name for name in won if name not in better]
    missed = [name for name in against if name not in won]
    pairs = [row for row in between if about_structure(configs[row["a"]], configs[row["b"]])]
    experiments = across is not None
    return Shown(against, same_name, experiments, between, pairs, sorted_rows[0], better, ahead, missed, controls)


def tested(row: Row) -> bool:
    """Whether a difference could be made, and not of runs that are the same."""
    return row["delta"] is not None and not row["identical"]


def about_structure(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two arms have a `flat*` and a `structured` aligner and are otherwise configured alike."""
    kinds = sorted(kind_of(config) for config in (a, b))
    others = [{key: value for key, value in config.items() if key != "aligner"} for config in (a, b)]
    return kinds[0].startswith("flat") and kinds[1] == "structured" and others[0] == others[1]


def kind_of(config: Mapping[str, Any]) -> str:
    """Kind of an arm's aligner, empty without one."""
    return str((config.get("aligner") or {}).get("kind", ""))
