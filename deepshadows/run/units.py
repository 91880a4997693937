"""Work units: what is read, scored and committed as one. Imports the vocabulary only.

A unit is a range of rows of a cut-out shard, or one tile with its detections, capped in rows. Its id is a hash of
its content's address, so the same input gives the same units, and a changed object gives others.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.schema import IMAGE_BYTES

SHARD_UNIT_ROWS, TILE_UNIT_ROWS = 20_000, 100_000
MOST_UNITS = 1_000_000


class UnitKind(enum.StrEnum):
    SHARD = "shard"
    """Rows of a cut-out shard."""
    TILE = "tile"
    """Detections on one tile."""
    UNPLACED = "unplaced"
    """Detections that lie on no tile or have an impossible position: rows without a score."""
    UNREADABLE = "unreadable"
    """An input object that could not even be indexed: no rows are known, its reason is `source`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One work unit.

    Attributes
    ----------
    unit : str
        Hash of all else, 32 hexadecimal digits; of a tile's or unplaced detections, of their content instead of
        where they lie.
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


def unit_size_rows(
    unit_rows: int | None, unit_mib: int | None, total_rows: int, default_rows: int = SHARD_UNIT_ROWS
) -> int:
    """Most rows of a unit: what the settings state (the smaller of both), else what the input asks for.

    Of shards 20,000 rows, 234 MiB of pixels: what a unit costs whatever its size (driver, listing, one PUT) is some
    milliseconds, and these take a CPU scorer seconds: below 1 %. Of tiles 100,000, because each unit opens and unpacks
    its tile again. A scorer that is killed loses the units in its hands, so still larger ones would only cost more.
    Beyond a million of either units grow instead: that many is what plan, listing and manifest are measured for.

    Parameters
    ----------
    unit_rows, unit_mib : int, optional
        The settings: rows, and MiB of 12 KiB images.
    total_rows : int
        Rows of the whole input, or an estimate that depends on nothing else: a rerun must cut the same units.
    """
    stated = [unit_rows] if unit_rows else []
    if unit_mib:
        stated.append(max(1, (unit_mib << 20) // IMAGE_BYTES))
    return min(stated) if stated else max(default_rows, -(-total_rows // MOST_UNITS))


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
