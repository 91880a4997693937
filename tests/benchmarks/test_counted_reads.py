"""The count of range reads."""

from __future__ import annotations

from pathlib import Path

from deepshadows import storage
from tests.benchmarks.counted_reads import counted_reads


def test_reads_within_the_block_are_counted(tmp_path: Path) -> None:
    url = str(tmp_path / "digits")
    Path(url).write_bytes(b"0123456789")
    with counted_reads() as reads:
        assert bytes(storage.read_range(url, 2, 5)) == b"234"
        assert storage.read_ranges(url, [0, 7], [1, 9]) == [b"0", b"78"]
    storage.read_range(url, 0, 10)
    assert (reads.requests, reads.bytes) == (2, 6)
