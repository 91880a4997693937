"""Rows of a Parquet file by row group; from S3 as one stream, in bounded memory. Imports no Ray, no torch.

A request for each row group costs server and client 1.45 CPU-seconds a GB (SeaweedFS), one stream 1.06, and where the
server is short of memory 4.7 and 3.0: with a fast network on the same cores that is what bounds the rate.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage


def open_parquet(url: str, id_column: str, **how: Any) -> pq.ParquetFile:
    """A Parquet file whose identifiers, where they are texts, are read as they lie in the file: of many rows, once.

    Unpacked by Arrow itself a few kilobytes could fill any memory; `shards.object_ids` unpacks what is not too much.
    """
    opened = storage.open_arrow(url)
    file = pq.ParquetFile(opened, **how)
    schema = file.schema_arrow
    if schema.names.count(id_column) != 1 or not pa.types.is_string(schema.field(id_column).type):
        return file
    return pq.ParquetFile(opened, metadata=file.metadata, read_dictionary=[id_column], **how)


def row_groups(file: pq.ParquetFile, first_row: int, rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The wanted rows, one row group after the other."""
    for number, low, high in wanted_groups(file.metadata, first_row, rows):
        yield file.read_row_group(number, columns).slice(low, high - low)


def streamed_row_groups(url: str, file: pq.ParquetFile, first_row: int, rows: int, etag: str) -> Iterator[pa.Table]:
    """The same, all columns, through one request for the bytes of all wanted row groups; see `storage.ByteStream`.

    Row groups that do not lie in the file in their order are asked for one by one.

    Raises
    ------
    StorageError
        The store breaks off.
    """
    metadata = file.metadata
    wanted = list(wanted_groups(metadata, first_row, rows))
    if not wanted:
        return
    spans = [_span(metadata.row_group(number)) for number, _, _ in wanted]
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        yield from row_groups(file, first_row, rows)
        return
    window = _Window(size_bytes=_span(metadata.row_group(metadata.num_row_groups - 1))[1])
    as_stored = [field.name for field in file.schema_arrow if pa.types.is_dictionary(field.type)]
    reader = pq.ParquetFile(pa.PythonFile(window, "r"), metadata=metadata, read_dictionary=as_stored)
    source = storage.ByteStream(url, spans[0][0], spans[-1][1], etag)
    for (number, low, high), (start, end) in zip(wanted, spans, strict=True):
        window.show(start, source.take(start, end))
        yield reader.read_row_group(number).slice(low, high - low)


def read_rows(file: pq.ParquetFile, first_row: int, rows: int, columns: list[str] | None = None) -> pa.Table:
    """The wanted rows as one table."""
    wanted = list(wanted_groups(file.metadata, first_row, rows))
    table = file.read_row_groups([number for number, _, _ in wanted], columns)
    return table.slice(wanted[0][1] if wanted else 0, sum(high - low for _, low, high in wanted))


def wanted_groups(metadata: pq.FileMetaData, first_row: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Row groups with wanted rows: number, first and last + 1 wanted row within it."""
    start = 0
    for number in range(metadata.num_row_groups):
        count = metadata.row_group(number).num_rows
        low, high = max(first_row - start, 0), min(first_row + rows - start, count)
        if low < high:
            yield number, low, high
        start += count


def _span(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """First and last + 1 byte of a row group."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    starts = [
        chunk.data_page_offset
        if chunk.dictionary_page_offset is None
        else min(chunk.dictionary_page_offset, chunk.data_page_offset)
        for chunk in chunks
    ]
    ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
    return min(starts), max(ends)


class _Window(io.RawIOBase):
    """A file of a stated size of which only the bytes of one row group are there."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._start, self._bytes, self._position = 0, memoryview(b""), 0

    def show(self, start: int, data: memoryview) -> None:
        self._start, self._bytes = start, data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> memoryview:  # Arrow takes it without a copy
        low = self._position - self._start
        high = len(self._bytes) if size is None or size < 0 else low + size
        data = self._bytes[low:high] if low >= 0 else self._bytes[:0]
        self._position += len(data)
        return data
