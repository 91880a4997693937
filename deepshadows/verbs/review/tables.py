"""Rows of score objects and of a catalogue's version, part by part. No Ray, no torch."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.collection import partitions_of, read_properties
from deepshadows.catalog.healpix import Partition, overlapping
from deepshadows.catalog.score_objects import ScoreSource, read_scores
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.outcomes import InputError

READERS = 4
"""Score objects read at once: what hides the time that a store takes to answer."""


def score_tables(sources: Sequence[ScoreSource]) -> Iterator[pa.Table]:
    """Tables in their order, a few being read while one is used."""
    remaining = iter(sources)
    with ThreadPoolExecutor(READERS, thread_name_prefix="reader") as pool:
        waiting = deque(pool.submit(read_scores, one) for one in itertools.islice(remaining, READERS))
        try:
            while waiting:
                table = waiting.popleft().result()
                waiting.extend(pool.submit(read_scores, one) for one in itertools.islice(remaining, 1))
                yield table
        finally:
            pool.shutdown(cancel_futures=True)


def in_batches(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of at least `rows` rows, but for the last."""
    together: list[pa.Table] = []
    for table in tables:
        together.append(table)
        if sum(one.num_rows for one in together) >= rows:
            yield pa.concat_tables(together)
            together = []
    if together:
        yield pa.concat_tables(together)


class Table:
    """The rows of one version of a catalogue."""

    def __init__(self, version: VersionFolder) -> None:
        self.version = version
        self.partitions = partitions_of(version.table_url)

    def near(self, pixels: NDArray[np.int64], order: int) -> list[Partition]:
        """The partitions that share sky with any of the pixels."""
        return overlapping(self.partitions, pixels, order)

    def count(self) -> int:
        """All rows, by the properties of the table and the footer of those without a place."""
        with storage.open_arrow(self.version.unplaced_url) as file:
            unplaced = pq.read_metadata(file).num_rows
        return int(read_properties(self.version.table_url).total_rows or 0) + int(unplaced)

    def rows(self, partitions: Sequence[Partition], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of some partitions, one row group after the other."""
        for partition in partitions:
            yield from _row_groups(storage.join(self.version.table_url, partition.path), columns)

    def unplaced(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows without a place on the sky."""
        return _row_groups(self.version.unplaced_url, columns)


def _row_groups(url: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    try:
        with storage.open_arrow(url) as opened:
            file = pq.ParquetFile(opened, pre_buffer=True)
            if lacking := [name for name in columns if name not in file.schema_arrow.names]:
                raise InputError(
                    f"{url}: no column {', '.join(lacking)}: not a catalogue of this version of DeepShadows"
                )
            for number in range(file.metadata.num_row_groups):
                yield file.read_row_group(number, list(columns)).replace_schema_metadata(None)
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(url, error) from error
