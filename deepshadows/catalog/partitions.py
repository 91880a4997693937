"""One partition of the catalogue: repeated objects, order of rows, layout of the file. No Ray, no torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.schema import HEALPIX, Flag, score_schema

ROW_GROUP_ROWS = 125_000
DICTIONARY_COLUMNS = ["flags", "unit", "run"]
EXAMPLES = 5


def catalog_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of the catalogue, with units, UCDs and descriptions in the field metadata."""
    return pa.schema([HEALPIX, *score_schema(id_type)])


@dataclass(frozen=True, slots=True)
class Repeats:
    """Objects that more than one unit has: rows beyond the first of each, and some of them to show."""

    rows: int = 0
    examples: tuple[str, ...] = ()

    def __add__(self, other: Repeats) -> Repeats:
        return Repeats(self.rows + other.rows, (self.examples + other.examples)[:EXAMPLES])


def repeated_rows(table: pa.Table) -> NDArray[np.bool_]:
    """Rows whose object_id another row has that comes before: scored ones first, then in the order given; shape (N,).

    Rows flagged DUPLICATE_ID are known already and stay.
    """
    ids = table["object_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    unscored = table["p_lsbg"].is_null().to_numpy()
    known = (table["flags"].to_numpy() & Flag.DUPLICATE_ID.bit) != 0
    rows = np.flatnonzero(~known)
    rows = rows[np.lexsort((rows, unscored[rows], ids[rows]))]
    repeated = np.zeros(table.num_rows, dtype=bool)
    repeated[rows[1:][ids[rows][1:] == ids[rows][:-1]]] = True
    return repeated


def describe_repeats(table: pa.Table, repeated: NDArray[np.bool_]) -> Repeats:
    """Count them, and name a few with the units they are in."""
    ids = table["object_id"].filter(pa.array(repeated)).slice(0, EXAMPLES).to_pylist()
    examples = []
    for value in dict.fromkeys(ids):
        rows = table.filter(pc.equal(table["object_id"], value))
        where = zip(rows["run"].to_pylist(), rows["unit"].to_pylist(), strict=True)
        examples.append(f"{value} in " + " and ".join(f"run {run} unit {unit}" for run, unit in where))
    return Repeats(int(repeated.sum()), tuple(examples))


def in_sky_order(table: pa.Table) -> pa.Table:
    """Rows sorted by `_healpix_29`, then object_id; what is equal keeps its order."""
    keys = [("_healpix_29", "ascending"), ("object_id", "ascending")]
    return table.take(pc.sort_indices(table, sort_keys=keys))


def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of one of our Parquet files, all columns or some."""
    with storage.open_arrow(url) as file:
        try:
            return pq.ParquetFile(file).read(columns)
        except storage.ARROW_ERRORS as error:
            raise storage.arrow_failure(url, error) from error


def to_parquet(table: pa.Table) -> bytes:
    """A Parquet file of the layout that was measured best: 61 B a row against 84 with defaults.

    Floats are split by byte, `_healpix_29` is stored as differences, dictionaries are for columns of few values.
    """
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, **layout(table.schema))
    return sink.getvalue()


def layout(schema: pa.Schema) -> dict[str, Any]:
    """How `pyarrow.parquet` is to encode these columns, all of the catalogue or some."""
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [name for name in schema.names if name in DICTIONARY_COLUMNS],
        "column_encoding": {field.name: encoding for field in schema if (encoding := _encoding(field))},
        "write_page_index": True,
    }


def _encoding(field: pa.Field) -> str | None:
    if field.name in DICTIONARY_COLUMNS:
        return None
    if pa.types.is_floating(field.type):
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BYTE_ARRAY" if pa.types.is_string(field.type) else "DELTA_BINARY_PACKED"
