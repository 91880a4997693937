"""Work units: what is read, scored and committed as one. Imports the vocabulary only.

A unit is a range of rows of a cut-out shard, or one tile with its detections, capped in rows. Its id is a hash of
its content's address, so the same input gives the same units, and a changed object gives others.
"""

from __future__ import annotations

import enum
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.outcomes import InputError

UNITS_PER_FILE = 50_000


class UnitKind(enum.StrEnum):
    SHARD = "shard"
    """Rows of a cut-out shard."""
    TILE = "tile"
    """Detections on one tile."""
    UNPLACED = "unplaced"
    """Detections that lie on no tile or have an impossible position: rows without a score."""
    UNREADABLE = "unreadable"
    """An input object that could not even be indexed: no rows are known, its reason is `source`."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One work unit.

    Attributes
    ----------
    unit : str
        Hash of all else; of a tile's or unplaced detections, of their content instead of where they lie.
    url, etag, size_bytes
        The shard, the table of detections, or the object that cannot be read.
    first_row, rows : int
        Range of rows in `url`.
    tile : str
        Tile id, else empty.
    source : str
        JSON of the tile's `bands` (`BandSource` fields) and `problems`, or the reason of an unreadable object.
    """

    unit: str
    kind: str
    url: str
    etag: str
    size_bytes: int
    first_row: int = 0
    rows: int = 0
    tile: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"tile {self.tile}" if self.tile else self.url


UNIT_SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("kind", pa.string()),
        ("url", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("tile", pa.string()),
        ("source", pa.string()),
    ]
)


_OF_THE_RUN = ("url", "etag", "first_row")


def make_unit(*, content: str = "", **values: Any) -> Unit:
    """A unit with its id; `content` stands for rows of a table that is this run's own, and where they lie in it."""
    named = {name: value for name, value in values.items() if not (content and name in _OF_THE_RUN)}
    text = json.dumps([content, named], sort_keys=True)
    return Unit(unit=hashlib.sha256(text.encode()).hexdigest()[:32], **values)


def shard_units(shard: storage.StoredObject, rows: int, unit_rows: int, row_group_rows: list[int]) -> Iterator[Unit]:
    """Cut a shard into units of whole row groups with at most `unit_rows` rows (one group at least)."""
    first, held = 0, 0
    for group_rows in [*row_group_rows, 0]:
        if held and (held + group_rows > unit_rows or not group_rows):
            yield make_unit(
                kind=UnitKind.SHARD.value,
                url=shard.url,
                etag=shard.etag,
                size_bytes=shard.size_bytes,
                first_row=first,
                rows=held,
            )
            first, held = first + held, 0
        held += group_rows
    if first != rows:
        raise InputError(f"{shard.url}: row groups hold {first} rows, its footer says {rows}")


def fingerprint(settings: dict[str, Any], weights_sha256: str, units: Iterable[Unit]) -> str:
    """Hash of everything that decides a run's scores: settings, network, preprocessing, input inventory."""
    digest = hashlib.sha256(json.dumps([settings, weights_sha256], sort_keys=True, default=str).encode())
    for unit in sorted(unit.unit for unit in units):
        digest.update(unit.encode())
    return digest.hexdigest()


def write_plan(run: str, name: str, units: list[Unit]) -> None:
    """Write the plan as RUN/units/NAME-*.parquet."""
    for number, start in enumerate(range(0, max(len(units), 1), UNITS_PER_FILE)):
        rows = [asdict(unit) for unit in units[start : start + UNITS_PER_FILE]]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=UNIT_SCHEMA), sink, compression="zstd")
        storage.write(storage.join(run, "units", f"{name}-{number:05d}.parquet"), sink.getvalue())


def planned_rows(run: str, name: str) -> dict[str, int]:
    """Rows of each unit of the plan `name`; those of a driver that died before it claimed the run are no part of it."""
    rows: dict[str, int] = {}
    for entry in storage.list_objects(storage.join(run, "units"), (".parquet",)):
        if not storage.name_of(entry.url).startswith(f"{name}-"):
            continue
        wanted = pa.schema([UNIT_SCHEMA.field(name) for name in ("unit", "rows")])
        with storage.open_arrow(entry.url) as file:
            try:
                table = pq.read_table(file, columns=wanted.names).cast(wanted)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise storage.arrow_failure(entry.url, error) from error
        rows.update(zip(table["unit"].to_pylist(), table["rows"].fill_null(0).to_pylist(), strict=True))
    return rows
