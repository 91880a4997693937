"""A real S3 server for the tests: SeaweedFS on free ports, in a folder of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
from pyarrow.fs import S3FileSystem

GRPC_OFFSET = 10_000
PORTS = range(12_000, 22_000)
"""Port and port + GRPC_OFFSET both lie below the range from which the kernel takes outgoing ports (32768)."""
START_LIMIT_S = 30.0
POLL_S = 0.05
KEY, SECRET = "DEEPSHADOWSTEST", "not-a-secret-only-for-the-tests"


class DidNotStartError(Exception):
    """The server ended, or did not answer in time; its log is in the message."""


class SeaweedFS:
    """One server process; `start`, `stop`, and `kill` + `start` for the fault tests: the data stays."""

    def __init__(self, key: str = KEY, secret: str = SECRET, *, memory: str = "256MiB") -> None:
        self.key, self.secret, self.memory = key, secret, memory
        self.folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
        identity = {
            "name": "dev",
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": ["Admin"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "data").mkdir()
        self.ports: list[int] = []
        self.metrics_port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def environment(self) -> dict[str, str]:
        """What every S3 client of the project takes from the environment (obstore, pyarrow, s3fs)."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start on new free ports, or again on the ones of before; returns once requests are answered."""
        if self.ports:
            self._launch()
            return
        for attempt in range(5):
            self.ports = _free_ports(5)
            try:
                self._launch()
            except DidNotStartError:
                if attempt == 4:
                    raise
            else:
                return

    def _launch(self) -> None:
        s3, master, volume, filer, admin = self.ports
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "mini"),
                    *(f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                    *(f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"),
                    *(f"-filer.port={filer}", f"-admin.port={admin}", "-admin.ui=false"),
                    *(f"-s3.config={self.folder / 's3.json'}", "-s3.autoCreateBucket=false"),
                    *(f"-metricsPort={self.metrics_port}", "-metricsIp=127.0.0.1") * bool(self.metrics_port),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-master.telemetry=false"),
                    *(f"-filer.localSocket={self.folder / 'filer'}", f"-s3.localSocket={self.folder / 's3'}"),
                ],
                env={**os.environ, "GOMEMLIMIT": self.memory},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return
            time.sleep(POLL_S)
        self.kill()
        log = (self.folder / "weed.log").read_text(errors="replace")
        raise DidNotStartError(f"SeaweedFS did not start on {self.ports}:\n{log[-3000:]}")

    def _answers(self) -> bool:
        """True once the filer behind the S3 port serves buckets, to the right key and to no one else."""
        try:
            if requests.get(self.endpoint, timeout=2).status_code != 403:
                return False
            self.filesystem().create_dir("ready")
        except OSError:
            return False
        return True

    def filesystem(self) -> Any:
        return S3FileSystem(
            access_key=self.key,
            secret_key=self.secret,
            endpoint_override=self.endpoint,
            region="us-east-1",
            allow_bucket_creation=True,
            request_timeout=5,
            connect_timeout=2,
        )

    def create_bucket(self, name: str) -> str:
        self.filesystem().create_dir(name)
        return f"s3://{name}"

    def count(self) -> None:
        """Let the next `start` count requests and bytes; see `counted`."""
        (self.metrics_port,) = _free_ports(1)

    def counted(self) -> dict[str, float]:
        """S3 requests and bytes since the start, by the server's own statistics: requests, received, sent."""
        text = requests.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).text
        names = {
            "requests": "SeaweedFS_s3_request_total",
            "received": "SeaweedFS_s3_bucket_traffic_received_bytes_total",
            "sent": "SeaweedFS_s3_bucket_traffic_sent_bytes_total",
        }
        return {
            name: sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(metric))
            for name, metric in names.items()
        }

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End the server and remove its data, and the sockets that it leaves in /tmp."""
        self.kill()
        for port in self.ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + GRPC_OFFSET}.sock"):
                socket_file.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().choice(PORTS)
        if port not in found and is_free(port) and is_free(port + GRPC_OFFSET):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
