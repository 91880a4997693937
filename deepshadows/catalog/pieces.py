"""Staged objects: rows on their way to the file that will hold them. No Ray, no torch.

A staged object holds one Arrow stream a destination, one after the other, so that whoever writes a partition fetches
one byte range of each staged object: no footers to parse, one PUT a chunk, however many partitions it touches.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage

_FETCHES = 8
"""Staged objects read at a time by one task."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one partition, margin or part of the index in one staged object: bytes [start, end)."""

    url: str
    partition: int
    start: int
    end: int
    rows: int


def put_pieces(table: pa.Table, number: NDArray[np.int64], url: str) -> list[Piece]:
    """Write rows by their number to `url`; nothing where there are none."""
    if not len(table):
        return []
    data, pieces = split(table, number, url)
    storage.write(url, data)
    return pieces


def split(table: pa.Table, number: NDArray[np.int64], url: str) -> tuple[bytes, list[Piece]]:
    """The bytes of a staged object, and where each destination lies in it; rows keep their order within one."""
    order = np.argsort(number, kind="stable")
    table = table.take(pa.array(order)).replace_schema_metadata(None).combine_chunks()
    present, first = np.unique(number[order], return_index=True)
    ends = [*first[1:], table.num_rows]
    sink = io.BytesIO()
    pieces = []
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for destination, begin, end in zip(present, first, ends, strict=True):
        start = sink.tell()
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table.slice(begin, end - begin))
        pieces.append(Piece(url, int(destination), start, sink.tell(), int(end - begin)))
    return sink.getvalue(), pieces


def gather(pieces: Sequence[Piece]) -> pa.Table:
    """The rows of one destination, in the order of the pieces."""

    def fetch(piece: Piece) -> pa.Table:
        (data,) = storage.read_ranges(piece.url, [piece.start], [piece.end])
        with pa.ipc.open_stream(data) as reader:
            return reader.read_all()

    with ThreadPoolExecutor(_FETCHES) as pool:
        return pa.concat_tables(pool.map(fetch, pieces))
