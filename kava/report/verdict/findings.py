"""The declared comparisons, sorted by what they compare and by what they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.config.arms import STRUCTURED
from kava.report.statistics.compare import Comparison

# Comparisons whose numbers a sentence can hold.
FEW = 6

STRUCTURED_WINS = "structured beats flat"
FLAT_WINS = "flat beats structured"
NO_DIFFERENCE = "no difference shown"
NO_CONTROL_BEATEN = "no KV arm beats its control"
TOO_FEW_SEEDS = "these students differ; too few seeds to show that it repeats"

# Arm → its configuration.
Configs = Mapping[str, Mapping[str, Any]]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """The comparisons that could be made.

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
        Those of them that are about structure.
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
    configs
        Arm → its configuration.
    """

    against: Mapping[str, Sequence[Comparison]]
    across: Sequence[Comparison]
    experiments: bool
    between: Sequence[Comparison]
    pairs: Sequence[Comparison]
    among_controls: Sequence[Comparison]
    better: Sequence[str]
    ahead: Sequence[str]
    missed: Sequence[str]
    controls: Sequence[str]
    configs: Configs

    def met_by(self, name: str) -> tuple[str, ...]:
        """The controls that a KV arm was compared with, in their order."""
        others = {row.b if row.a == name else row.a for row in self.against[name]}
        return tuple(control for control in self.controls if control in others)

    @property
    def unshown(self) -> list[str]:
        """KV arms that are not shown to beat their controls, those apart that the headline names as ahead."""
        return [*(self.ahead if self.better else ()), *self.missed]

    @property
    def missed_in_headline(self) -> list[str]:
        """Those of them that the answer speaks of: that has to come first."""
        named = {name for row in (*self.across, *(self.pairs or self.between)) for name in (row.a, row.b)}
        return [name for name in self.unshown if name in named]

    @property
    def what_is_beaten(self) -> str:
        """In words: one control, or all of those that an arm met."""
        return "all its controls" if any(len(self.met_by(name)) > 1 for name in self.against) else "its control"


def sort_out(rows: Sequence[Comparison], controls: Sequence[str], configs: Configs, across: Pairs | None) -> Findings:
    """Sort `rows`, all of which were tested.

    `across` are the pairs of arms of the same name in two experiments; None in the report of one experiment's run.
    """
    against: dict[str, list[Comparison]] = {}
    same_name: list[Comparison] = []
    between: list[Comparison] = []
    among_controls: list[Comparison] = []
    for row in rows:
        kv = [name for name in (row.a, row.b) if name not in controls]
        if len(kv) == 1:
            against.setdefault(kv[0], []).append(row)
        elif (row.a, row.b) in (across or ()):
            same_name.append(row)
        else:
            (between if kv else among_controls).append(row)
    won = [name for name, met in against.items() if all(row.winner == name for row in met)]
    better = [name for name in won if all(row.repeated for row in against[name])]
    return Findings(
        against,
        same_name,
        across is not None,
        between,
        [row for row in between if about_structure(configs[row.a], configs[row.b])],
        among_controls,
        better,
        [name for name in won if name not in better],
        [name for name in against if name not in won],
        controls,
        configs,
    )


def keeps_structure(config: Mapping[str, Any]) -> bool | None:
    """Whether an arm's aligner maps layers, heads and dims apart; None without an aligner."""
    aligner = config.get("aligner")
    return aligner and aligner["kind"] in STRUCTURED


def about_structure(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether one arm's aligner keeps structure, the other's flattens it, and they are otherwise configured alike."""
    others = [{key: value for key, value in config.items() if key != "aligner"} for config in (a, b)]
    return {keeps_structure(a), keeps_structure(b)} == {True, False} and others[0] == others[1]
