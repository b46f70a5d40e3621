"""What `kava plan` says of each stage, to stand beside what was measured."""

from importlib import import_module

from kava.config.load import REPOSITORY
from kava.config.schema import Config

Planned = dict[tuple[str, str], dict[str, float]]


def planned(config: Config) -> Planned | None:
    """Stage and arm → `allocator_mib` and `peak_mib`, the second with CUDA context and paged states.

    Parameters
    ----------
    config
        With `max_length` that of the longest example that was measured.

    Returns
    -------
    dict or None
        None where there is no `kava plan`.
    """
    if not (REPOSITORY / "kava" / "plan" / "overview.py").is_file():
        return None
    needs = import_module("kava.plan.overview").needs
    found = {}
    for stage, arm, need in needs(config):
        memory = need.memory()
        found[stage, arm] = {"allocator_mib": memory.allocator / 2**20, "peak_mib": memory.peak / 2**20}
    return found
