"""A Ray of several nodes in a process of its own, steered by lines: `python -m tests.faults.ray_nodes NODES`.

Says one JSON line when it is up. Takes `kill` (the newest node goes without grace), `add` and, at the end of its input,
ends every node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

from tests.end_to_end.ray_head import kill

ROOT = Path(__file__).parents[2]
CPUS = 2


def main(count: int) -> None:
    from ray.cluster_utils import Cluster

    here = {"num_cpus": CPUS}
    head = {**here, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    nodes = [cluster.add_node(**here) for _ in range(count)]
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        else:
            nodes.append(cluster.add_node(**here))
        print("done", flush=True)
    cluster.shutdown()


class RayNodes:
    """The process above; its nodes take the environment that is given."""

    def __init__(self, environment: dict[str, str], count: int) -> None:
        self.environment = {
            **os.environ, **environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what keeps Ray, drivers too, on the loopback
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)
        self.count = count
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ray_nodes", str(count)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address: str = json.loads(self.process.stdout.readline())["address"]
        assert self.address.startswith("127.0.0.1:")

    def ask(self, what: str) -> None:
        """`kill` or `add` a node."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"
        self.count += 1 if what == "add" else -1

    def workers(self, name: str) -> list[psutil.Process]:
        """The processes of actors of that class."""
        return named_workers(self.process.pid, name)

    def stop(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert self.process.stdin is not None
        self.process.stdin.close()
        _, alive = psutil.wait_procs([psutil.Process(self.process.pid), *family], timeout=20)
        kill(alive)
        self.process.wait()


def named_workers(pid: int, name: str) -> list[psutil.Process]:
    """Ray's worker processes below `pid` that hold an actor of that class."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and name in title:
            found.append(process)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
