"""Progress of a long step: a bar on a terminal, a plain line now and then in a log. Never on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

T = TypeVar("T")

LOG_INTERVAL_S = 10.0


def track(items: Iterable[T], description: str, total: int, note: Callable[[T], str] = lambda item: "") -> Iterator[T]:
    """Yield `items`, showing how many of `total` are done, when the last will be, and what `note` says of each."""
    show = _bar if sys.stderr.isatty() else _lines
    return show(items, description, total, note)


def _bar(items: Iterable[T], description: str, total: int, note: Callable[[T], str]) -> Iterator[T]:
    shown = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[note]}", TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.update(task, advance=1, note=note(item))


def _lines(items: Iterable[T], description: str, total: int, note: Callable[[T], str]) -> Iterator[T]:
    started = last = time.monotonic()
    done, said = 0, ""
    for done, item in enumerate(items, start=1):
        yield item
        said = note(item)
        now = time.monotonic()
        if now - last >= LOG_INTERVAL_S:
            last = now
            left = timedelta(seconds=round((now - started) / done * (total - done)))
            say(", ".join(filter(None, (f"{description}: {done}/{total}", said, f"{left} to go"))))
    say(", ".join(filter(None, (f"{description}: {done}/{total} in {time.monotonic() - started:.1f} s", said))))


class ScoringNote:
    """What is said of a run beside its units: the rate so far, flags that were set, units that could not be read."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._scored = self._flags = self._quarantined = 0

    def __call__(self, receipt: Mapping[str, Any]) -> str:
        """Take up one more receipt (`run.scores.Receipt` as a dictionary)."""
        self._scored += receipt["scored"]
        self._flags += sum(json.loads(receipt["flag_counts"]).values())
        self._quarantined += receipt["quarantined"]
        rate = self._scored / max(1e-9, time.monotonic() - self._began)
        return f"{rate:.0f} images/s, {self._flags} flags, {self._quarantined} quarantined"


def say(line: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def relay(text: str) -> None:
    """Pass on the log of a job that runs elsewhere, as it is."""
    sys.stderr.write(text)
    sys.stderr.flush()
