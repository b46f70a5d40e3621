"""What the settings of an experiment were when its report was last made, beside what they are to be now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.report.clean import flatten
from kava.report.record import record_as_written, without_places

# What follows from other settings, or changes the report alone.
SAID_BY_OTHERS = ("preset", "comparisons", "controls", "notes", "report")
SHOWN = 4


def changed_settings(folder: Path, spec: Mapping[str, Any]) -> str | None:
    """A sentence for who is about to run, since an experiment's name keeps no settings; None if nothing differs.

    Parameters
    ----------
    folder
        Of the experiment, with or without a record.
    spec
        Of the report's job.
    """
    try:
        before = record_as_written(folder)[0]["configuration"]
    except UserError:
        return None  # `kava report` says what is wrong with it, or that there is none
    now = without_places(spec)
    arms = sorted(now["arms"].keys() ^ before["arms"].keys())
    found = [f"arm {arm}: {'new' if arm in now['arms'] else 'gone'}" for arm in arms]
    old, new = (flatten({k: v for k, v in settings.items() if k not in SAID_BY_OTHERS}) for settings in (before, now))
    found += [f"{name}: {old[name]}, now {new[name]}" for name in old if name in new and old[name] != new[name]]
    if not found:
        return None
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{folder} was last made with other settings ({'; '.join(found[:SHOWN])}{more}). What depends on them runs "
        "again in its place. A name keeps no settings: give all of them each time, or another experiment=NAME."
    )
