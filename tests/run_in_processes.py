"""One short run of training, for torchrun: FOLDER ARM."""

import sys
from pathlib import Path

from training_fixtures import make_model, run

from kava.config.arms import StructuredAligner

if __name__ == "__main__":
    folder, arm = sys.argv[1:]
    # The KV loss ends half-way: a trained projector then has no gradient, which DDP has to bear.
    run(Path(folder), make_model(StructuredAligner() if arm == "structured" else None, kv_until=0.5))
