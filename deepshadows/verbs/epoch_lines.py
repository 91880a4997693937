"""One line an epoch on stderr, carried from Ray Train's controller to the driver. Used by `train` and `finetune`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.train.v2.api.callback import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deepshadows.model.training_state import Epoch
from deepshadows.verbs.progress import say

POLL_S = 0.5


@ray.remote(num_cpus=0)
class Reports:
    """Carries reports from Ray Train's controller to the driver."""

    def __init__(self) -> None:
        self._reports: list[dict[str, Any]] = []

    def add(self, report: dict[str, Any]) -> None:
        self._reports.append(report)

    def take(self) -> list[dict[str, Any]]:
        taken, self._reports = self._reports, []
        return taken


class Reporting(UserCallback):
    """Runs in the controller; hands each epoch to `Reports`."""

    def __init__(self, reports: Any) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for report in metrics:
            if report:
                self._reports.add.remote(report)


@contextlib.contextmanager
def spoken(epochs: int) -> Iterator[Reporting]:
    """A callback whose reports appear as one line an epoch on stderr."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives as long as we do
    reports = Reports.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    over = threading.Event()

    def speak() -> None:
        last = False
        while not last:
            last = over.wait(POLL_S)
            for report in ray.get(reports.take.remote()):
                say(_line(Epoch(**report), epochs))

    speaker = threading.Thread(target=speak, name="training progress", daemon=True)
    speaker.start()
    try:
        yield Reporting(reports)
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
