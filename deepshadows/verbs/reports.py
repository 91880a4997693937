"""Reports of work that runs in other processes, carried to the driver while it goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.5


@ray.remote(num_cpus=0)
class Reports:
    """Keeps what it is told until the driver takes it."""

    def __init__(self) -> None:
        self._reports: list[dict[str, Any]] = []
        self._running = False

    def add(self, report: dict[str, Any]) -> None:
        self._reports.append(report)

    def note(self, running: bool) -> None:
        self._running = running

    def take(self) -> tuple[list[dict[str, Any]], bool]:
        """Reports since the last call, and whether the workers run."""
        taken, self._reports = self._reports, []
        return taken, self._running


@contextlib.contextmanager
def heard(take_up: Callable[[list[dict[str, Any]], bool], None]) -> Iterator[Any]:
    """Reports on this node; what `take` gives goes to `take_up` every `POLL_S`, a last time when the block ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives as long as we do
    reports = Reports.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    over = threading.Event()

    def listen() -> None:
        last = False
        while not last:
            last = over.wait(POLL_S)
            take_up(*ray.get(reports.take.remote()))

    listener = threading.Thread(target=listen, name="reports", daemon=True)
    listener.start()
    try:
        yield reports
    finally:
        over.set()
        listener.join(timeout=10)
        ray.kill(reports)
