"""Measure what each codec makes of the run's own teacher KV, for the report's chart of size against fidelity.

    python -m kava.stages.bench_store --preset demo

For a run with `report.codecs: true`. Reads a few of the tokens with the teacher and writes
<cache_dir>/bench/<name>-<key>/store.json. `kava bench store` measures any model and more tokens.
"""

import sys

from kava.stages.common import stage_main


def main(argv: list[str] | None = None) -> int:
    return stage_main("bench_store", __doc__, argv, lambda jobs, _: jobs.bench, beside_others="wait")


if __name__ == "__main__":
    sys.exit(main())
