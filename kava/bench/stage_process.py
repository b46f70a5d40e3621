"""One stage in a process of its own, its peak memory measured: started by `kava bench memory` and `bench extract`.

python -m kava.bench.stage_process REQUEST.json RESULT.json [timed]
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kava.config.job import Job, Runtime, for_another_process, from_another_process
from kava.config.load import REPOSITORY
from kava.errors import UserError
from kava.files import read_json, write_json
from kava.text import first_line


def run_measured(job: Job, runtime: Runtime, folder: Path, timed: bool = False) -> dict[str, Any]:
    """Run a stage in a process of its own; messages between the processes go through the folder.

    `timed` is for a stage whose seconds count, too: its live tensors are not counted, which takes time.

    Returns
    -------
    dict
        Figures of the device's meter, and `error`: why the stage could not do its work, or null.

    Raises
    ------
    UserError
        The process ended without a word, killed perhaps.
    """
    request, result = folder / "request.json", folder / "result.json"
    result.unlink(missing_ok=True)
    request.write_text(for_another_process(job, runtime), encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    command = [
        sys.executable,
        "-m",
        "kava.bench.stage_process",
        str(request),
        str(result),
        *(["timed"] if timed else []),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )
    if not result.is_file():
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise UserError(f"stage {job.stage} ended with status {done.returncode} ({last[0]}); run the stage alone")
    return read_json(result)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    request, result = map(Path, given[:2])
    job, runtime = from_another_process(request.read_text(encoding="utf-8"))

    import torch

    from kava.bench.meter import meter
    from kava.bench.workspace import quiet
    from kava.device import choose_device

    error = None
    with meter(choose_device(runtime.device), timed=len(given) > 2) as measured, quiet():
        try:
            job.body()(job, runtime)
        except (UserError, torch.OutOfMemoryError) as failure:
            error = first_line(failure)
    write_json(result, measured.figures() | {"error": error})
    return 0


if __name__ == "__main__":
    sys.exit(main())
