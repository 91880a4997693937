"""Requests and bytes of the range reads of headers and pixels."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from deepshadows import storage


@dataclass
class Reads:
    """What was asked for so far, by all threads."""

    requests: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size_bytes: int) -> None:
        with self._lock:
            self.requests += 1
            self.bytes += size_bytes


@contextmanager
def counted_reads() -> Iterator[Reads]:
    """Count what this process reads by ranges within the block: bytes as stored, compressed where they are."""
    one, several, reads = storage.read_range, storage.read_ranges, Reads()

    def read_range(url: str, start: int, end: int) -> memoryview:
        reads.add(end - start)
        return one(url, start, end)

    def read_ranges(url: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        reads.add(sum(ends) - sum(starts))
        return several(url, starts, ends)

    storage.read_range, storage.read_ranges = read_range, read_ranges
    try:
        yield reads
    finally:
        storage.read_range, storage.read_ranges = one, several
