"""The id index of a version: object_id -> partition, as a HATS index catalogue. No Ray, no torch.

Parts are ranges of object_id, and each is sorted by it, so a look-up reads the row group or two whose range holds the
identifier. A part whose identifiers did not change is copied from the version before. Rows without a place on the sky
have no entry.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.catalog.division import ID_PART_ROWS
from deepshadows.catalog.healpix import Partition
from deepshadows.catalog.partitions import read_table
from deepshadows.catalog.pieces import Piece, gather
from deepshadows.schema import id_field

ROW_GROUP_ROWS = 100_000
PAGE_BYTES = 16 * 1024
"""Pages of the index, as `hats-import` writes them: readers that use the page index fetch one."""
_KEYS = ["object_id", "Norder", "Npix"]


def index_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of the index, named as HATS readers want them."""
    return pa.schema([id_field(id_type), ("Norder", pa.uint8()), ("Npix", pa.uint64())])


@dataclass(frozen=True, slots=True)
class IndexPart:
    """One file of the index, below its folder, and the smallest object_id in it."""

    path: str
    first: int | str
    rows: int


def index_entries(ids: pa.ChunkedArray, partition: Partition) -> pa.Table:
    """One entry for each identifier that a partition holds."""
    ids = pc.unique(ids)
    order, pixel = (pa.repeat(pa.scalar(value, kind), len(ids)) for value, kind in _typed(partition))
    return pa.table([ids, order, pixel], schema=index_schema(ids.type))


def _typed(partition: Partition) -> tuple[tuple[int, pa.DataType], tuple[int, pa.DataType]]:
    return (partition.order, pa.uint8()), (partition.pixel, pa.uint64())


def changed_entries(ids: pa.ChunkedArray, before_url: str | None, partition: Partition) -> tuple[pa.Table, pa.Table]:
    """Entries that a partition gains and loses against what it was in the version before, if it was there."""
    now = index_entries(ids, partition)
    if before_url is None:
        return now, now.slice(0, 0)
    before = index_entries(read_table(before_url, ["object_id"])["object_id"], partition)
    return _without(now, before), _without(before, now)


def _without(entries: pa.Table, others: pa.Table) -> pa.Table:
    """Entries of identifiers that `others` has not; both of one partition."""
    value_set = others["object_id"].combine_chunks()
    return entries.filter(pc.invert(pc.is_in(entries["object_id"], value_set=value_set)))


def merge_entries(before: pa.Table | None, added: Sequence[pa.Table], removed: Sequence[pa.Table]) -> pa.Table:
    """The entries of one part: those before, less those removed, and those added; sorted by object_id."""
    kept = [] if before is None else [before]
    if before is not None and removed:
        kept = [before.join(pa.concat_tables(removed), keys=_KEYS, join_type="left anti")]
    table = pa.concat_tables([*kept, *added])
    return table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in _KEYS]))


def write_index_part(
    number: int, index_url: str, before_url: str | None, added: Sequence[Piece], removed: Sequence[Piece]
) -> None:
    """Write one part, or several where it has grown beyond twice ID_PART_ROWS; none where no entry is left."""
    before = read_table(before_url) if before_url else None
    table = merge_entries(before, [gather(added)] if added else [], [gather(removed)] if removed else [])
    rows = ID_PART_ROWS if len(table) > 2 * ID_PART_ROWS else max(1, len(table))
    for place, first in enumerate(range(0, len(table), rows)):
        storage.write(storage.join(index_url, part_path(number, place)), _to_parquet(table.slice(first, rows)))


def part_path(number: int, place: int = 0) -> str:
    """The file of a part below the folder of the index; `place` counts the pieces that it is cut into."""
    return f"dataset/index/part.{number:05d}.{place:02d}.parquet"


def _to_parquet(table: pa.Table) -> bytes:
    id_type = table.schema.field("object_id").type
    sink = io.BytesIO()
    pq.write_table(
        table.cast(index_schema(id_type)),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        data_page_size=PAGE_BYTES,
        compression="zstd",
        compression_level=3,
        use_dictionary=["Norder", "Npix"],
        column_encoding={"object_id": "DELTA_BYTE_ARRAY" if pa.types.is_string(id_type) else "DELTA_BINARY_PACKED"},
        sorting_columns=pq.SortingColumn.from_ordering(table.schema, [("object_id", "ascending")]),
        write_page_index=True,
    )
    return sink.getvalue()


def read_parts(index_url: str) -> list[IndexPart]:
    """The parts of an index and where each begins, from its `_metadata`, in the order of object_id."""
    with storage.open_arrow(storage.join(index_url, "dataset", "_metadata")) as file:
        footer = pq.read_metadata(file)
    found: dict[str, IndexPart] = {}
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        path = "dataset/" + group.column(0).file_path
        first = group.column(0).statistics.min
        known = found.get(path)
        found[path] = IndexPart(path, known.first if known else first, group.num_rows + (known.rows if known else 0))
    return sorted(found.values(), key=lambda part: part.first)


def look_up(index_url: str, ids: pa.Array) -> list[Partition]:
    """Partitions that hold these identifiers, in the order of the sky; reads only their row groups of the index."""
    filesystem, path = storage.arrow_location(storage.join(index_url, "dataset", "_metadata"))
    dataset = pds.parquet_dataset(path, filesystem=filesystem)
    table = dataset.to_table(columns=["Norder", "Npix"], filter=pc.field("object_id").isin(ids))
    pairs = table.group_by(["Norder", "Npix"]).aggregate([])
    found = zip(pairs["Norder"].to_pylist(), pairs["Npix"].to_pylist(), strict=True)
    return sorted((Partition(order, pixel, 0) for order, pixel in found), key=lambda entry: entry.first_index)
