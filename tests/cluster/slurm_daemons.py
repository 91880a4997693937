"""A real Slurm of several nodes on this machine, on free ports: its own munged, slurmctld and slurmd, ended by id."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.end_to_end.ray_head import free_ports
from tests.seaweed import is_free

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
START_LIMIT_S = 60.0
CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
FirstJobId={job}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE
"""


def missing() -> list[str]:
    """What is not there to start one, for a test to be skipped with the reason."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return [*lacking, *(["root"] if os.geteuid() else [])]


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin"])


class Slurm:
    """`nodes` nodes of `cpus` CPUs each, whatever this machine has."""

    def __init__(self, nodes: int, cpus: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dsslurm-"))
        self.folder.chmod(0o755)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge.key").chmod(0o400)
        controller, *ports = free_ports(nodes + 1)
        job = next(
            number for number in random.sample(range(1, 10_000), 100) if is_free(20_000 + number)
        )  # the script's port
        lines = [
            f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
            for number, port in enumerate(ports)
        ]
        self.config = self.folder / "slurm.conf"
        self.config.write_text(
            CONFIG.format(folder=self.folder, controller=controller, nodes="\n".join(lines), job=job)
        )
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.config)}
        self.processes: list[subprocess.Popen[bytes]] = []
        socket, key = f"--socket={self.folder}/munge.socket", f"--key-file={self.folder}/munge.key"
        files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", socket, key, *files)
        self._start("slurmctld", "-D")
        for number in range(nodes):
            self._start("slurmd", "-D", "-N", f"n{number}")
        self._wait(nodes)

    def _start(self, *words: str) -> None:
        with (self.folder / f"{len(self.processes)}-{words[0]}.log").open("wb") as log:
            started = subprocess.Popen(words, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(started)

    def _wait(self, nodes: int) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            told = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).stdout.split()
            if told == ["idle"] * nodes:
                return
            time.sleep(0.2)
        logs = "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.log")
        )
        self.stop()
        raise RuntimeError(f"Slurm did not start:\n{logs}")

    def run(self, *words: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands."""
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=check
        )

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
