"""What `kava plan` says of each stage, to stand beside what was measured."""

from kava.config.schema import Config
from kava.plan.overview import needs

Planned = dict[tuple[str, str], dict[str, float]]


def planned(config: Config) -> Planned:
    """Stage and arm → `allocator_mib` and `peak_mib`, the second with CUDA context and paged states.

    Parameters
    ----------
    config
        With `max_length` that of the longest example that was measured.
    """
    found = {}
    for stage, arm, need in needs(config):
        memory = need.memory()
        found[stage, arm] = {"allocator_mib": memory.allocator / 2**20, "peak_mib": memory.peak / 2**20}
    return found
