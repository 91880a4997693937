"""A real Ray head with its dashboard and a token, in processes of its own, on free ports; ended by process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil
import requests

LOCAL = Path(__file__).parents[2] / "cluster" / "local.sh"
START_LIMIT_S = 90.0
POLL_S = 0.05


class RayHead:
    """`cluster/local.sh`; jobs get `environment` and find this interpreter as `python`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dsray-"))  # short: it holds sockets, whose paths have a limit
        dashboard, client, agent = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.token = uuid.uuid4().hex
        (self.folder / "token").write_text(self.token)
        self.access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        binaries = str(Path(sys.executable).parent)
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        options = {
            "port": 0,
            "num-cpus": 4,
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "object-store-memory": 200_000_000,
            "temp-dir": self.folder / "ray",
        }
        with (self.folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["sh", str(LOCAL), *(f"--{key}={options[key]}" for key in options)],
                env={**os.environ, **environment, **self.access, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                headers = {"Authorization": f"Bearer {self.token}"}
                if requests.get(f"{self.address}/api/jobs/", headers=headers, timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass  # not there yet
            time.sleep(POLL_S)
        log = (self.folder / "head.log").read_text(errors="replace")
        self.stop()
        raise RuntimeError(f"Ray did not start at {self.address}:\n{log[-3000:]}")

    def family(self) -> list[psutil.Process]:
        """Every process below the head."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """End the head and every process below it."""
        family = self.family()
        self.process.terminate()
        _, alive = psutil.wait_procs([psutil.Process(self.process.pid), *family] if family else [], timeout=10)
        kill(alive)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Without a warning, each of them that has not ended by itself meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listeners(processes: Iterable[psutil.Process]) -> set[str]:
    """Addresses at which these processes wait for others."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            listening = [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]
            found |= {address.removeprefix("::ffff:") for address in listening}
    return found
