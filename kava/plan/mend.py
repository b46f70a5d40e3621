"""Which settings would make a stage fit, and what it would take then."""

from dataclasses import dataclass

from kava.plan.memory import GIB
from kava.plan.needs import Need

# A setting that saves less is no mend.
SMALLEST_SAVING = 16 << 20


@dataclass(frozen=True)
class Mend:
    """A setting as written in the configuration, the peak in bytes that it would give, and whether that fits."""

    setting: str
    peak: int
    fits: bool


def mends(need: Need, budget_gib: float) -> list[Mend]:
    """Settings that would lower a need, the least harmful first; if none of them is enough, all that are, together."""
    peak, found = need.memory().peak, []
    for setting, changed in need.mends():
        memory = changed.memory()
        if peak - memory.peak >= SMALLEST_SAVING:
            found.append(Mend(setting, memory.peak, memory.fits(budget_gib)))
    if found and not any(mend.fits for mend in found):
        found.append(_together(need, budget_gib))
    return found


def _together(need: Need, budget_gib: float) -> Mend:
    """One setting after the other, each on top of those before it, until it fits or there are none left."""
    settings: list[str] = []
    tried: set[str] = set()
    while not need.memory().fits(budget_gib):
        left = [(setting, changed) for setting, changed in need.mends() if setting.split(":")[0] not in tried]
        if not left:
            break
        setting, changed = left[0]
        tried.add(setting.split(":")[0])
        if need.memory().peak - changed.memory().peak >= SMALLEST_SAVING:
            settings.append(setting)
            need = changed
    memory = need.memory()
    return Mend(" and ".join(settings), memory.peak, memory.fits(budget_gib))


def explained(who: str, need: Need, budget_gib: float) -> str:
    """Why a stage does not fit and what would mend it, in one sentence for an error."""
    listed = [
        f"`{mend.setting}` gives {mend.peak / GIB:.2f} GiB{'' if mend.fits else ', still too much'}"
        for mend in mends(need, budget_gib)
    ]
    advice = "; ".join(listed) if listed else "no setting would mend that: take a smaller model or a larger GPU"
    return f"{who} {need.memory().lack(budget_gib)}; {advice}"
