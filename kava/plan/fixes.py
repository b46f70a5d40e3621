"""Which settings would make a stage fit, and what it would take then."""

from dataclasses import dataclass

from kava.device import GIB
from kava.plan.memory import StageMemory
from kava.plan.needs import Need

# A setting that saves less is no fix.
SMALLEST_SAVING = 16 << 20


@dataclass(frozen=True)
class Fix:
    """A setting as written in the configuration, the peak in bytes that it would give, and whether that fits."""

    setting: str
    peak: int
    fits: bool


def fixes(need: Need, budget_gib: float) -> list[Fix]:
    """Settings that would lower a need, the least harmful first.

    The last one may be several together: those that fit and do less harm than any single one that does.
    """
    peak, single = need.memory().peak, []
    for setting, changed in need.fixes():
        memory = changed.memory()
        if peak - memory.peak >= SMALLEST_SAVING:
            single.append(Fix(setting, memory.peak, memory.fits(budget_gib)))
    first = next((place for place, fix in enumerate(single) if fix.fits), len(single))
    settings, memory = _together(need, budget_gib)
    if len(settings) > 1 and _key(settings[-1]) not in {_key(fix.setting) for fix in single[first:]}:
        return [*single, Fix(" and ".join(settings), memory.peak, memory.fits(budget_gib))]
    return single


def _together(need: Need, budget_gib: float) -> tuple[list[str], StageMemory]:
    """One setting after the other, each on top of those before it, until it fits or there are none left."""
    settings: list[str] = []
    tried: set[str] = set()
    while not need.memory().fits(budget_gib):
        left = [(setting, changed) for setting, changed in need.fixes() if _key(setting) not in tried]
        if not left:
            break
        setting, changed = left[0]
        tried.add(_key(setting))
        if need.memory().peak - changed.memory().peak >= SMALLEST_SAVING:
            settings.append(setting)
            need = changed
    return settings, need.memory()


def _key(setting: str) -> str:
    return setting.split(":")[0]


def explained(who: str, need: Need, budget_gib: float) -> str:
    """Why a stage does not fit and what fixes it, in one sentence for an error."""
    listed = [
        f"`{fix.setting}` gives {fix.peak / GIB:.2f} GiB{'' if fix.fits else ', still too much'}"
        for fix in fixes(need, budget_gib)
    ]
    advice = "; ".join(listed) or "no setting would fix that: take a smaller model or a larger GPU"
    return f"{who} {need.memory().lack(budget_gib)}; {advice}"
