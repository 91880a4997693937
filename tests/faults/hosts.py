"""Hosts that are network namespaces on one bridge, each with an address, a /tmp and a Ray node of its own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from tests.faults.place import wait_until

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6379


class NoNamespacesError(Exception):
    """This process may not make network namespaces, or the system lacks `ip`."""


def ip(*words: str) -> str:
    """`ip ...` of iproute2."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Hosts:
    """Host 0 is the head; `cut` and `heal` take a host's cable out and put it in again.

    Raises
    ------
    NoNamespacesError
        The privilege or the tool is missing.
    """

    def __init__(self, count: int) -> None:
        self.tag = uuid.uuid4().hex[:6]
        part = random.SystemRandom()
        self.network = f"10.{part.randrange(64, 128)}.{part.randrange(256)}"
        self.names = [f"ds{self.tag}n{number}" for number in range(count)]
        self.bridge = f"ds{self.tag}"
        self.gateway = f"{self.network}.1"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        try:
            self._connect()
        except (OSError, subprocess.CalledProcessError) as error:
            self.stop()
            raise NoNamespacesError(f"making network namespaces: {getattr(error, 'stderr', None) or error}") from error

    def _connect(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for number, name in enumerate(self.names):
            ip("netns", "add", name)
            ip("link", "add", self._cable(number), "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", self._cable(number), "master", self.bridge, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "route", "add", "default", "via", self.gateway)

    def _cable(self, number: int) -> str:
        return f"ds{self.tag}c{number}"

    def address(self, number: int) -> str:
        return f"{self.network}.{number + 2}"

    def cut(self, number: int) -> None:
        ip("link", "set", self._cable(number), "down")

    def heal(self, number: int) -> None:
        ip("link", "set", self._cable(number), "up")

    def start_ray(self, environment: dict[str, str], cpus: int) -> None:
        """A Ray head without CPUs, and a worker node on each other host."""
        for number, name in enumerate(self.names):
            (self.folder / name).mkdir()
            role = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            if number:
                role = [f"--address={self.address(0)}:{PORT}", f"--num-cpus={cpus}"]
            words = [RAY, "start", *role, f"--node-ip-address={self.address(number)}", "--block"]
            words += ["--object-store-memory=100000000", "--disable-usage-stats"]
            mounted = f'mount --bind {self.folder / name} /tmp && exec "$@"'
            with (self.folder / f"{name}.log").open("wb") as log:
                self.nodes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, "sh", "-c", mounted, "sh", *words],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            wait_until(lambda name=name: b"Ray runtime started" in self.log(name), f"Ray on {name}")

    def log(self, name: str) -> bytes:
        return (self.folder / f"{name}.log").read_bytes()

    def on_head(self) -> tuple[str, ...]:
        """What to put before a command that is to run on the head."""
        return ("nsenter", "-t", str(self.nodes[0].pid), "--net", "--mount", f"--wd={Path.cwd()}")

    def stop(self) -> None:
        """End what runs in the namespaces, and remove them."""
        for name in self.names:
            if not Path(f"/run/netns/{name}").exists():
                continue
            for pid in ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name)
        for node in self.nodes:
            node.wait(20)
        if Path(f"/sys/class/net/{self.bridge}").exists():
            ip("link", "delete", self.bridge)
        shutil.rmtree(self.folder, ignore_errors=True)
