"""What the tasks of a publish do: count rows, stage them by partition, write one partition. No Ray, no torch.

A staged object holds one Arrow stream a partition, one after the other, so that whoever writes a partition fetches one
byte range of each staged object: no footers to parse, one PUT a chunk, however many partitions it touches.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.healpix import UNPLACED, Partition, count_pixels, partition_numbers
from deepshadows.catalog.partitions import (
    Repeats,
    catalog_schema,
    describe_repeats,
    in_sky_order,
    repeated_rows,
    to_parquet,
)
from deepshadows.catalog.score_objects import ScoreSource, placed_index, read_scores
from deepshadows.schema import HEALPIX


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one partition in one staged object: bytes [start, end)."""

    url: str
    partition: int
    start: int
    end: int
    rows: int


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one partition."""

    partition: int
    rows: int
    size_bytes: int
    repeats: Repeats


def count_chunk(sources: list[ScoreSource]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Occupied pixels and the placed rows in each, of some score objects."""
    tables = (read_scores(source, ["ra", "dec", "flags"]) for source in sources)
    return count_pixels(np.concatenate([placed_index(table)[1] for table in tables]))


def stage(sources: list[ScoreSource], partitions: list[Partition], url: str) -> list[Piece]:
    """Read the rows of some score objects and write them, by partition, to `url`."""
    parts: list[pa.Table] = []
    numbers: list[NDArray[np.int64]] = []
    for source in sources:
        table, number = _with_destination(read_scores(source), partitions)
        parts.append(table)
        numbers.append(number)
    data, pieces = split(pa.concat_tables(parts), np.concatenate(numbers), url)
    storage.write(url, data)
    return pieces


def _with_destination(table: pa.Table, partitions: list[Partition]) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows with `_healpix_29` (null where not placed), and the partition number of each."""
    placed, index = placed_index(table)
    healpix, number = np.zeros(len(placed), np.int64), np.full(len(placed), UNPLACED, np.int64)
    healpix[placed] = index
    number[placed] = partition_numbers(index, partitions)
    return table.add_column(0, HEALPIX, pa.array(healpix, mask=~placed)), number


def split(table: pa.Table, number: NDArray[np.int64], url: str) -> tuple[bytes, list[Piece]]:
    """The bytes of a staged object, and where each partition lies in it; rows keep their order within one."""
    order = np.argsort(number, kind="stable")
    table = table.take(pa.array(order)).replace_schema_metadata(None).combine_chunks()
    present, first = np.unique(number[order], return_index=True)
    ends = [*first[1:], table.num_rows]
    sink = io.BytesIO()
    pieces = []
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for partition, begin, end in zip(present, first, ends, strict=True):
        start = sink.tell()
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table.slice(begin, end - begin))
        pieces.append(Piece(url, int(partition), start, sink.tell(), int(end - begin)))
    return sink.getvalue(), pieces


def gather(pieces: list[Piece]) -> pa.Table:
    """The rows of one partition, in the order of the pieces."""
    tables = []
    for piece in pieces:
        (data,) = storage.read_ranges(piece.url, [piece.start], [piece.end])
        with pa.ipc.open_stream(data) as reader:
            tables.append(reader.read_all())
    return pa.concat_tables(tables)


def write_partition(number: int, pieces: list[Piece], url: str, keep_first: bool) -> Written:
    """Gather, drop repeats if told so, sort, write; repeats that nobody decided on are reported, nothing written."""
    table = gather(pieces)
    repeated = repeated_rows(table)
    repeats = Repeats()
    if repeated.any():
        repeats = describe_repeats(table, repeated)
        if not keep_first:
            return Written(number, table.num_rows, 0, repeats)
        table = table.filter(pa.array(~repeated))
    table = in_sky_order(table).cast(catalog_schema(table.schema.field("object_id").type))
    data = to_parquet(table if number != UNPLACED else table.drop_columns(["_healpix_29"]))
    storage.write(url, data)
    return Written(number, table.num_rows, len(data), repeats)
