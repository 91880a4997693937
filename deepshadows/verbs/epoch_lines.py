"""What a training says on stderr, carried from Ray Train's controller: a line an epoch, and that it waits for nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2.api.callback import RayTrainCallback, UserCallback

from deepshadows.model.training_state import Epoch
from deepshadows.verbs.progress import say
from deepshadows.verbs.reports import POLL_S, heard

WAITING_S = 30
"""So long without workers, which take some seconds to start, is told."""


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
    waited_s = 0.0

    def speak(reported: list[dict[str, Any]], running: bool) -> None:
        nonlocal waited_s
        for report in reported:
            say(_line(Epoch(**report), epochs))
        waited_s = 0.0 if running else waited_s + POLL_S
        if waited_s == WAITING_S:
            say(f"waiting for nodes with room for {workers} workers; with a smaller --min-workers fewer would do")

    with heard(speak) as reports:
        yield [Reporting(reports), Watching(reports)]


def _line(epoch: Epoch, epochs: int) -> str:
    auc = "undefined" if epoch.validation_auc is None else f"{epoch.validation_auc:.4f}"
    return (
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.4f}; validation loss "
        f"{epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}, AUC {auc}; "
        f"{epoch.images_per_s:.0f} images/s{f' with {epoch.workers} workers' if epoch.workers > 1 else ''}"
    )
