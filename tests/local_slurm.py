"""A real Slurm on this machine alone: a controller and one node that live in a folder and end with it."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch"
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=here NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=main Nodes=here Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def local_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start one, and give the environment in which Slurm's commands talk to it. Needs to be root."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    controller_port, node_port = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(),
            folder=folder,
            controller_port=controller_port,
            node_port=node_port,
            cpus=os.cpu_count(),
            megabytes=psutil.virtual_memory().total >> 20,
        )
    )
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    munge = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/seed",
    ]
    with ExitStack() as running:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "here"]):
            running.enter_context(_service(command, environment, folder / f"{command[0]}.output"))
        deadline = time.monotonic() + 60
        while "idle" not in (state := _output(environment, "sinfo", "--noheader", "--format=%T")):
            logs = "\n".join(file.read_text() for file in folder.glob("*.output"))
            assert time.monotonic() < deadline, f"Slurm's node is {state or 'not there'}:\n{logs}"
            time.sleep(0.5)
        yield environment


def jobs_of(environment: dict[str, str]) -> list[str]:
    """The numbers of all jobs that were given to it in the last minutes."""
    return _output(environment, "squeue", "--states=all", "--noheader", "--format=%i").split()


@contextmanager
def _service(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _output(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
