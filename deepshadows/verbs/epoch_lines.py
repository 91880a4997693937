"""What a training says on stderr, carried from Ray Train's controller: a line an epoch, and that it waits for nodes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2.api.callback import RayTrainCallback, UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deepshadows.model.training_state import Epoch
from deepshadows.verbs.progress import say

POLL_S = 0.5
WAITING_S = 30
"""So long without workers, which take some seconds to start, is told."""


@ray.remote(num_cpus=0)
class Reports:
    """Carries reports from Ray Train's controller to the driver."""

    def __init__(self) -> None:
        self._reports: list[dict[str, Any]] = []
        self._running = False

    def add(self, report: dict[str, Any]) -> None:
        self._reports.append(report)

    def note(self, running: bool) -> None:
        self._running = running

    def take(self) -> tuple[list[dict[str, Any]], bool]:
        """Epochs since the last call, and whether the workers run."""
        taken, self._reports = self._reports, []
        return taken, self._running


class Reporting(UserCallback):
    """Runs in the controller; hands each epoch to `Reports`."""

    def __init__(self, reports: Any) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for report in metrics:
            if report:
                self._reports.add.remote(report)


class Watching(ControllerCallback):
    """Runs in the controller; tells `Reports` when the workers begin and cease to run."""

    def __init__(self, reports: Any) -> None:
        self._reports = reports

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self._reports.note.remote(isinstance(current_state, RunningState))


@contextlib.contextmanager
def spoken(epochs: int, workers: int) -> Iterator[list[RayTrainCallback]]:
    """Callbacks whose reports appear on stderr; `workers` are the fewest that the training goes on with."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives as long as we do
    reports = Reports.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    over = threading.Event()

    def speak() -> None:
        last, waited_s = False, 0.0
        while not last:
            last = over.wait(POLL_S)
            taken, running = ray.get(reports.take.remote())
            for report in taken:
                say(_line(Epoch(**report), epochs))
            waited_s = 0.0 if running else waited_s + POLL_S
            if waited_s == WAITING_S:
                say(f"waiting for nodes with room for {workers} workers; with a smaller --min-workers fewer would do")

    speaker = threading.Thread(target=speak, name="training progress", daemon=True)
    speaker.start()
    try:
        yield [Reporting(reports), Watching(reports)]
    finally:
        over.set()
        speaker.join(timeout=10)
        ray.kill(reports)


def _line(epoch: Epoch, epochs: int) -> str:
    auc = "undefined" if epoch.validation_auc is None else f"{epoch.validation_auc:.4f}"
    return (
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.4f}; validation loss "
        f"{epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}, AUC {auc}; "
        f"{epoch.images_per_s:.0f} images/s{f' with {epoch.workers} workers' if epoch.workers > 1 else ''}"
    )
