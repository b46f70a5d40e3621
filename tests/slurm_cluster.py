"""A Slurm of one node on this machine, without systemd: munged, slurmctld and slurmd as children of this process.

apt-get install slurm-wlm munge
python tests/slurm_cluster.py DIR          # until Ctrl-C; prints the variables that its commands need
"""

import argparse
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
STOP = {signal.SIGINT, signal.SIGTERM}
# As the daemons' owner, whoever that is; the GPUs are empty files; killed jobs get five seconds.
SLURM_CONF = """\
ClusterName=kava
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What of Slurm and munge is not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def cancel(comment: str, variables: dict[str, str]) -> None:
    """Kill the running job with this comment, as an administrator would: SIGTERM, and SIGKILL after KillWait."""
    environment = os.environ | variables
    jobs = subprocess.run(
        ["squeue", "--noheader", "--states=RUNNING", "--format=%i %k"],
        env=environment, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (number,) = (line.split()[0] for line in jobs.splitlines() if line.split()[1] == comment)
    subprocess.run(["scancel", number], env=environment, check=True)


@contextmanager
def slurm(folder: Path, cpus: int = 4, gpus: int = 2, memory_mb: int = 64_000) -> Iterator[dict[str, str]]:
    """Start the cluster and stop it again.

    Parameters
    ----------
    folder
        For its configuration, state and logs; made, and not removed.
    cpus, gpus, memory_mb
        What the node has to give, whatever the machine has.

    Yields
    ------
    The environment variables that Slurm's commands need.

    Raises
    ------
    RuntimeError
        If it does not start, with what the daemons said.
    """
    host = socket.gethostname().split(".")[0]
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    controller_port, node_port = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        SLURM_CONF.format(
            host=host, user=_user(), folder=folder, cpus=cpus, gpus=gpus, memory_mb=memory_mb,
            controller_port=controller_port, node_port=node_port,
        )
    )  # fmt: skip
    devices = [folder / f"gpu{n}" for n in range(gpus)]
    for device in devices:
        device.touch()
    (folder / "gres.conf").write_text("AutoDetect=off\n" + "".join(f"Name=gpu File={device}\n" for device in devices))
    variables = {"SLURM_CONF": str(configuration), "PATH": f"{_srun(folder, configuration)}:{_path()}"}
    environment = os.environ | variables
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{name}={folder}/munge/{file}" for name, file in files.items()]
    with ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-c", "-f", str(configuration)],
            ["slurmd", "-D", "-c", "-N", host, "-f", str(configuration)],
        ):
            stack.enter_context(_daemon(command, folder, environment))
        _wait_until_idle(folder, environment)
        try:
            yield variables
        finally:  # jobs would outlive the daemons
            everything = ["scancel", "--full", "--signal=KILL", "--user", _user()]
            subprocess.run(everything, env=environment, check=False, capture_output=True)


def _srun(folder: Path, configuration: Path) -> Path:
    """Folder of an srun that knows the configuration: inside a job Snakemake's plugin drops SLURM_CONF."""
    program = shutil.which("srun")
    assert program, "srun is among the programs that were looked for"
    wrapper = folder / "bin/srun"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {program} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper.parent


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(folder: Path, environment: dict[str, str], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        state = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
        )
        if state.stdout.strip() == "idle":
            return
        if time.monotonic() > deadline:
            said = "".join(f"\n== {file.name}\n{file.read_text()[-1500:]}" for file in sorted(folder.glob("*.out")))
            raise RuntimeError(f"Slurm does not start: {state.stdout}{state.stderr}{said}")
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


def _path() -> str:
    """Daemons lie where an ordinary user's PATH does not lead."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    with slurm(folder) as variables:
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        signal.sigwait(STOP)


if __name__ == "__main__":
    main()
