"""Progress of a long step: a bar on a terminal, a plain line now and then in a log. Never on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

LOG_INTERVAL_S = 10.0


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield `items`, showing how many of `total` are done."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(description, total=total)
            for item in items:
                yield item
                progress.advance(task)
        return
    started = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_INTERVAL_S:
            last = now
            say(f"{description}: {done}/{total}")
    say(f"{description}: {done}/{total} in {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def relay(text: str) -> None:
    """Pass on the log of a job that runs elsewhere, as it is."""
    sys.stderr.write(text)
    sys.stderr.flush()
