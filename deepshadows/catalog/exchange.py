"""What the tasks of a publish do: count rows, stage them by partition, write one partition. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.division import Division, sample_ids
from deepshadows.catalog.healpix import UNPLACED, Partition, count_pixels
from deepshadows.catalog.id_index import changed_entries
from deepshadows.catalog.partitions import (
    Repeats,
    catalog_schema,
    describe_repeats,
    in_sky_order,
    read_table,
    repeated_rows,
    to_parquet,
)
from deepshadows.catalog.pieces import Piece, gather, put_pieces
from deepshadows.catalog.score_objects import ScoreSource, read_placed
from deepshadows.catalog.unit_rows import UNIT_ROWS, count_units, of_units


@dataclass(frozen=True, slots=True)
class KeptRows:
    """A partition of the version before, or its rows without a place, less those of units that go.

    `left_out_url` holds repeats that were left out of it, empty where none were: the row that they repeat may go.
    `gone` are the units, RUN/UNIT each, strings.
    """

    url: str
    left_out_url: str
    rows: int
    gone: pa.Array


Source = ScoreSource | KeptRows


@dataclass(frozen=True, slots=True)
class Counted:
    """Occupied pixels of COUNT_ORDER and the rows in each, of some sources; a sample of their identifiers."""

    pixels: NDArray[np.int64]
    rows: NDArray[np.int64]
    total: int
    ids: pa.Array


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of one partition, and where its rows for margins and the id index are staged.

    `rows` are those that came, `repeats` among them; `pixels` (of COUNT_ORDER), `pixel_rows` and `units` count those
    that were written; `indexed` and `unindexed` are entries that the id index gets and loses.
    """

    cell: int
    rows: int
    repeats: Repeats
    size_bytes: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    pixel_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    units: pa.Table = field(default_factory=UNIT_ROWS.empty_table)
    margin: list[Piece] = field(default_factory=list)
    indexed: list[Piece] = field(default_factory=list)
    unindexed: list[Piece] = field(default_factory=list)


def read_rows(source: Source, id_type: pa.DataType) -> pa.Table:
    """Rows of a source with `_healpix_29`, null where they have no place on the sky."""
    if isinstance(source, ScoreSource):
        return read_placed(source)
    schema = catalog_schema(id_type)
    tables = []
    for url in filter(None, (source.url, source.left_out_url)):
        table = read_table(url)
        if schema.names[0] not in table.column_names:  # unplaced rows
            table = table.add_column(0, schema.field(0), pa.nulls(len(table), pa.int64()))
        tables.append(table.filter(pc.invert(of_units(table, source.gone))).cast(schema))
    return pa.concat_tables(tables)


def count_rows(sources: Sequence[Source], id_type: pa.DataType) -> Counted:
    """Count the rows of some sources on the sky."""

    def narrow(source: Source) -> pa.Table:
        if isinstance(source, ScoreSource):
            return read_placed(source, ["object_id", "ra", "dec", "flags"])
        return read_rows(source, id_type)

    columns = ["_healpix_29", "object_id"]
    table = pa.concat_tables([narrow(source).select(columns) for source in sources])
    pixels, rows = count_pixels(table["_healpix_29"].drop_null().to_numpy())
    return Counted(pixels, rows, len(table), sample_ids(table["object_id"].combine_chunks()))


def stage(sources: Sequence[Source], id_type: pa.DataType, division: Division, url: str) -> list[Piece]:
    """Read the rows of some sources and write them, by partition, to `url`."""
    table = pa.concat_tables([read_rows(source, id_type) for source in sources])
    index = table["_healpix_29"]
    cells = np.full(len(table), UNPLACED, np.int64)
    cells[index.is_valid().to_numpy()] = division.cells_of(index.drop_null().to_numpy())
    return put_pieces(table, cells, url)


def write_partition(
    cell: int,
    pieces: Sequence[Piece],
    url: str,
    keep_first: bool,
    division: Division,
    staging_url: str,
    before_url: str | None,
    left_out_url: str,
    by_unit: bool,
) -> Written:
    """Gather, drop repeats if told so, sort, write; stage what margins and the id index need of it.

    Repeats that nobody decided on are reported, nothing is written. Of a partition that the version before has too, at
    `before_url`, only identifiers that came or went are given to the index. Rows come in the order of their sources;
    `by_unit` puts them into that of their units, which is the same where all are of one run.
    """
    table = gather(pieces)
    if by_unit:
        table = table.sort_by("unit")
    rows = len(table)
    repeated = repeated_rows(table)
    repeats = describe_repeats(table, repeated) if repeated.any() else Repeats()
    if repeats.rows and not keep_first:
        return Written(cell=cell, rows=rows, repeats=repeats)
    left_out = table.filter(pa.array(repeated))
    if repeats.rows:
        storage.write(left_out_url, to_parquet(left_out))
    table = table.filter(pa.array(~repeated))
    table = in_sky_order(table).cast(catalog_schema(table.schema.field("object_id").type))
    data = to_parquet(table if cell != UNPLACED else table.drop_columns(["_healpix_29"]))
    storage.write(url, data)
    written = Written(cell=cell, rows=rows, repeats=repeats, size_bytes=len(data))
    if cell == UNPLACED:
        return replace(written, units=count_units(table, left_out, None))
    index = table["_healpix_29"].to_numpy()
    pixels, pixel_rows = count_pixels(index)
    row, beside = division.margins_of(index)
    partition = division.cells[cell]
    added, removed = changed_entries(table["object_id"], before_url, partition)
    return replace(
        written,
        pixels=pixels,
        pixel_rows=pixel_rows,
        units=count_units(table, left_out, partition),
        margin=put_pieces(table.take(pa.array(row)), beside, storage.join(staging_url, f"margin-{cell:06d}.arrows")),
        indexed=put_entries(added, division, storage.join(staging_url, f"indexed-{cell:06d}.arrows")),
        unindexed=put_entries(removed, division, storage.join(staging_url, f"unindexed-{cell:06d}.arrows")),
    )


def put_entries(entries: pa.Table, division: Division, url: str) -> list[Piece]:
    """Stage entries of the id index by its parts."""
    return put_pieces(entries, division.parts_of(entries["object_id"].combine_chunks()), url)


def retire(url: str, partition: Partition, id_type: pa.DataType, division: Division, staging_url: str) -> list[Piece]:
    """Stage the index entries of a partition that the version before has and the new one has not."""
    _, removed = changed_entries(pa.chunked_array([], id_type), url, partition)
    target = storage.join(staging_url, f"retired-{partition.order}-{partition.pixel}.arrows")
    return put_entries(removed, division, target)
