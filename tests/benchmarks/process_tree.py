"""What a command and all its descendants cost: CPU seconds, and memory at its peak."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

POLL_S = 0.5


@dataclass(frozen=True)
class Cost:
    """Of one command.

    Attributes
    ----------
    output : str
        What it printed.
    seconds, cpu_s : float
        From start to end; CPU of all processes, as seen last, at most `POLL_S` before each ended.
    peak_bytes, largest_bytes : int
        Largest sum of proportional set sizes, and of one process; 0 where memory was not watched, which costs CPU.
    """

    output: str
    seconds: float
    cpu_s: float
    peak_bytes: int
    largest_bytes: int


class FailedError(Exception):
    """A command ended with an error; the message is its last line."""


def run(command: Sequence[str], *, memory: bool = False) -> Cost:
    """Run to the end; one that fails is a `FailedError`."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, text=True)
        root = psutil.Process(process.pid)
        cpu_s: dict[tuple[int, float], float] = {}
        peak_bytes = largest_bytes = 0
        while process.poll() is None:
            found = [root, *_descendants(root)]
            cpu_s.update(entry for one in found if (entry := _cpu_s(one)) is not None)
            if memory:
                sizes = [_pss_bytes(one) for one in found]
                peak_bytes, largest_bytes = max(peak_bytes, sum(sizes)), max(largest_bytes, *sizes)
            time.sleep(POLL_S)
        seconds = time.perf_counter() - started
        for file in (output, errors):
            file.seek(0)
        if process.returncode:
            raise FailedError((errors.read().strip().splitlines() or ["no reason given"])[-1])
        return Cost(output.read(), seconds, sum(cpu_s.values()), peak_bytes, largest_bytes)


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _cpu_s(process: psutil.Process) -> tuple[tuple[int, float], float] | None:
    try:
        times = process.cpu_times()
        return (process.pid, process.create_time()), times.user + times.system
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
