"""What a run tells Prometheus while it goes on: counters of the scorer actors, which Ray exports on every node.

Ray writes them as `ray_<name>_total` with labels for run and node; `cluster/grafana.json` draws them. Without Ray they
count for nobody, and cost a microsecond.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sized
from typing import Literal, TypeVar

from ray.util.metrics import Counter, Histogram

from deepshadows.run.units import Unit, UnitKind
from deepshadows.schema import IMAGE_BYTES

T = TypeVar("T")

_RUN = ("run",)
IMAGES = Counter("deepshadows_images", "Cut-outs that went through the network.", _RUN)
INPUT_BYTES = Counter("deepshadows_input_bytes", "Input of units done: 12,288 B a shard's row, a tile's files.", _RUN)
UNITS = Counter("deepshadows_units", "Units that ended: done, quarantined or failed.", ("outcome", *_RUN))
RETRIES = Counter("deepshadows_retries", "Further tries of a unit that could not be read.", _RUN)
SCORER_SECONDS = Counter("deepshadows_scorer_seconds", "Time of scorers, busy or idle.", ("state", *_RUN))
QUEUE_WAIT_SECONDS = Histogram(
    "deepshadows_queue_wait_seconds",
    "How long the network waited for each part of a unit (about 1000 cut-outs) to be read.",
    boundaries=[0.001, 0.01, 0.1, 1, 10, 60],
    tag_keys=_RUN,
)


def count_for(run: str) -> None:
    """What this process counts from now on is of that run."""
    for metric in (IMAGES, INPUT_BYTES, UNITS, RETRIES, SCORER_SECONDS, QUEUE_WAIT_SECONDS):
        metric.set_default_tags({"run": run})


count_for("")


class _Clock:
    """Tells busy from idle time: busy is when at least one thread of this process is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._since = 0, 0.0

    def step(self, change: int) -> None:
        """A thread goes in (1), out (-1), or begins to wait (0); the first step starts the clock."""
        with self._lock:
            now = time.monotonic()
            if self._since and now > self._since:
                SCORER_SECONDS.inc(now - self._since, {"state": "busy" if self._inside else "idle"})
            self._inside, self._since = self._inside + change, now


_CLOCK = _Clock()


@contextlib.contextmanager
def scoring(images: Sized) -> Iterator[None]:
    """The network is at work on `images`; two threads at once are busy once."""
    _CLOCK.step(1)
    try:
        yield
    finally:
        _CLOCK.step(-1)
    if len(images):  # Ray refuses to add nothing
        IMAGES.inc(len(images))


def waited(parts: Iterator[T]) -> Iterator[T]:
    """Yield `parts`, and tell how long each let itself be waited for."""
    _CLOCK.step(0)
    while True:
        began = time.monotonic()
        try:
            part = next(parts)
        except StopIteration:
            return
        QUEUE_WAIT_SECONDS.observe(time.monotonic() - began)
        yield part


def unit_ended(unit: Unit, outcome: Literal["done", "quarantined", "failed"]) -> None:
    """A unit has come to its end."""
    UNITS.inc(tags={"outcome": outcome})
    pixel_bytes = unit.size_bytes if unit.kind == UnitKind.TILE else unit.rows * IMAGE_BYTES
    if outcome == "done" and unit.kind != UnitKind.UNPLACED and pixel_bytes:
        INPUT_BYTES.inc(pixel_bytes)
