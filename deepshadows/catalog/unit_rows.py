"""units.parquet of a version: how many rows of which unit lie in which partition. No Ray, no torch.

From it a later version knows which partitions it has to write anew when units go, without reading any.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.catalog.healpix import Partition
from deepshadows.catalog.partitions import read_table
from deepshadows.catalog.version_folder import VersionFolder

UNIT_ROWS = pa.schema(
    [
        ("run", pa.string()),
        ("unit", pa.string()),
        ("Norder", pa.int8()),  # both null: without a place on the sky
        ("Npix", pa.int64()),
        ("rows", pa.int64()),
        ("left_out", pa.int64()),  # beside these: repeats of objects that another unit has
    ]
)


def count_units(table: pa.Table, left_out: pa.Table, partition: Partition | None) -> pa.Table:
    """The rows of each unit in one partition, or among those without a place; columns of UNIT_ROWS."""
    both = pa.concat_tables(
        part.select(["run", "unit"]).append_column("out", pa.array(np.full(len(part), out)))
        for part, out in ((table, 0), (left_out, 1))
    )
    counted = both.group_by(["run", "unit"]).aggregate([([], "count_all"), ("out", "sum")])
    order, pixel = (partition.order, partition.pixel) if partition else (None, None)
    columns = [
        counted["run"],
        counted["unit"],
        pa.array([order] * len(counted), pa.int8()),
        pa.array([pixel] * len(counted), pa.int64()),
        pc.subtract(counted["count_all"], counted["out_sum"]),
        counted["out_sum"],
    ]
    return pa.table(columns, schema=UNIT_ROWS)


def write_unit_rows(version: VersionFolder, tables: list[pa.Table]) -> None:
    """Write CAT/vNNNN/units.parquet, sorted by run and unit."""
    keys = [(name, "ascending") for name in ("run", "unit", "Norder", "Npix")]
    table = pa.concat_tables([UNIT_ROWS.empty_table(), *tables]).sort_by(keys)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["run", "unit"])
    storage.write(version.units_url, sink.getvalue())


def read_unit_rows(version: VersionFolder) -> pa.Table:
    """What CAT/vNNNN/units.parquet says; columns of UNIT_ROWS."""
    return read_table(version.units_url).cast(UNIT_ROWS)


def of_units(table: pa.Table, gone: pa.Array) -> pa.ChunkedArray:
    """True for the rows of the units in `gone`, each named RUN/UNIT; for any table with `run` and `unit`."""
    return pc.is_in(pc.binary_join_element_wise(table["run"], table["unit"], "/"), value_set=gone)


def partitions_in(table: pa.Table) -> list[Partition]:
    """Partitions with their rows, in the order of the sky, as unit counts have them; those without a place left out."""
    placed = table.filter(pc.is_valid(table["Npix"]))
    summed = placed.group_by(["Norder", "Npix"]).aggregate([("rows", "sum")])
    triples = zip(*(summed[name].to_pylist() for name in ("Norder", "Npix", "rows_sum")), strict=True)
    return sorted((Partition(*triple) for triple in triples), key=lambda partition: partition.first_index)


def with_repeats(table: pa.Table) -> set[tuple[int | None, int | None]]:
    """Order and pixel of the partitions that rows were left out of; None, None for those without a place."""
    held = table.filter(pc.greater(table["left_out"], 0))
    return set(zip(held["Norder"].to_pylist(), held["Npix"].to_pylist(), strict=True))
