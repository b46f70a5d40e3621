"""A training stage in several processes that share each optimizer step (DDP), started by torchrun.

`accelerate launch` starts torchrun too, but on CPUs a single process.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil
import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.run import main as torchrun

from kava.config.job import Job, Runtime, for_another_process, from_another_process
from kava.config.specs import DistillSpec, PretrainSpec
from kava.device import choose_device
from kava.errors import Interrupted, UserError
from kava.exits import exit_status
from kava.training.termination import Terminated, heeded

JOB_VARIABLE = "KAVA_JOB"


def is_main_process() -> bool:
    """Whether this process is the one that writes; the only one of most runs."""
    return int(os.environ.get("RANK", "0")) == 0


def run_in_processes(job: Job[PretrainSpec] | Job[DistillSpec], runtime: Runtime, processes: int, lock: int) -> None:
    """Run a training stage in several processes, and wait for them.

    Parameters
    ----------
    job, runtime
        Of the stage.
    processes
        How many.
    lock
        Descriptor of the folder's lock, which the processes hold for as long as they live, also without this one.

    Raises
    ------
    Terminated, Interrupted
        SIGTERM or Ctrl-C came, and was passed on.
    UserError
        There are fewer GPUs than processes, or a process failed.
    """
    on_gpu = choose_device(runtime.device).type == "cuda"
    if on_gpu and torch.cuda.device_count() < processes:
        raise UserError(
            f"{job.stage}.num_processes is {processes}, and torch sees {torch.cuda.device_count()} GPU(s); each "
            "process takes one: set it to at most that, or device: cpu"
        )
    command = [sys.executable, "-m", __name__, "--standalone", "--nproc_per_node", str(processes)]
    # A step, and writing the checkpoint of it, may take longer than the 30 seconds that torchrun waits otherwise.
    command += ["--shutdown-timeout", "600", "-m", __name__]
    environment = os.environ | {JOB_VARIABLE: for_another_process(job, runtime)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # A group of its own: the terminal sends Ctrl-C to all processes of a group, and torchrun takes two for haste.
    process = subprocess.Popen(command, env=environment, pass_fds=(lock,), process_group=0)
    with _signals_passed_on(process) as passed:
        status = process.wait()
    if signal.SIGINT in passed:
        raise Interrupted(f"{job.stage} was interrupted; the steps that were computed are saved; run again to go on")
    if passed:
        raise Terminated(f"{job.stage} was ended by SIGTERM; the step that was computed then is saved; run again")
    if status:
        raise UserError(f"{job.stage} in {processes} processes ended with status {status}; what they said stands above")


def main() -> int:
    """One of the processes, in the environment that torchrun gives it."""
    job, runtime = from_another_process(os.environ[JOB_VARIABLE])
    logging.basicConfig(
        level=logging.INFO if is_main_process() else logging.ERROR, format="%(message)s", stream=sys.stderr, force=True
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    status = exit_status(f"kava {job.stage} (process {os.environ['RANK']})", lambda: job.body()(job, runtime))
    # A process that failed must not wait here for others, which wait for it.
    if status == 0 and distributed.is_initialized():
        distributed.destroy_process_group()
    return status


def launch(arguments: list[str]) -> int:
    """torchrun, without the traceback that it prints of a signal."""
    try:
        torchrun(arguments)
    except SignalException as error:
        return 128 + error.sigval
    return 0


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Give the first SIGTERM or SIGINT to a process, as SIGTERM; yields what came.

    A second SIGTERM would cut its waiting short; a second SIGINT, Ctrl-C, is meant to, and kills it and its children.
    """
    passed: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if not passed:
            process.send_signal(signal.SIGTERM)
        elif number == signal.SIGINT:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
        passed.append(number)

    former = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        yield passed
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]) if sys.argv[1:] else main())
