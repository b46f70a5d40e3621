"""Tokenise the data: ids and segments of every example, and the test questions as an lm-eval task.

    kava tokenize --preset demo

Reads no model, only tokenizers. Writes <cache_dir>/tokens/<name>-<key>/manifest.json.
"""

import sys

from kava.stages.common import stage_main


def main(argv: list[str] | None = None) -> int:
    return stage_main("tokenize", __doc__, argv, lambda jobs, _: jobs.tokenize, beside_others="wait")


if __name__ == "__main__":
    sys.exit(main())
