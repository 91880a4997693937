"""Reads the score objects of finished runs and checks them against what the run's manifest says. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.healpix import is_placed, spatial_index
from deepshadows.outcomes import InputError
from deepshadows.schema import HEALPIX, score_schema

FINGERPRINT_KEY = b"deepshadows.fingerprint"


@dataclass(frozen=True, slots=True)
class ScoreSource:
    """One score object as its run's manifest states it."""

    url: str
    size_bytes: int
    rows: int
    fingerprint: str
    id_type: str


def arrow_id_type(name: str) -> pa.DataType:
    """The Arrow type of `object_id`; `name` is int64 or string."""
    return {"int64": pa.int64(), "string": pa.string()}[name]


class _Counted(Protocol):
    @property
    def rows(self) -> int: ...


S = TypeVar("S", bound=_Counted)


def in_chunks(sources: Sequence[S], chunk_rows: int) -> list[list[S]]:
    """Consecutive objects of at most `chunk_rows` together, or a single larger one."""
    chunks: list[list[S]] = []
    room = 0
    for source in sources:
        if not chunks or source.rows > room:
            chunks.append([])
            room = chunk_rows
        chunks[-1].append(source)
        room -= source.rows
    return chunks


def read_scores(source: ScoreSource, columns: list[str] | None = None) -> pa.Table:
    """Rows of one score object, all columns or some.

    Raises
    ------
    InputError
        The object is damaged, or is not the one that the run committed.
    """
    with storage.open_arrow(source.url) as file:
        if file.size() != source.size_bytes:
            raise InputError(_changed(source, f"{file.size()} bytes, the manifest says {source.size_bytes}"))
        try:
            parquet = pq.ParquetFile(file)
            table = parquet.read(columns)
        except storage.ARROW_ERRORS as error:
            failure = storage.arrow_failure(source.url, error)
            if isinstance(failure, InputError):
                failure = InputError(_changed(source, f"it cannot be read ({error})"))
            raise failure from error
    footer = parquet.schema_arrow.metadata or {}
    if footer.get(FINGERPRINT_KEY, b"").decode() != source.fingerprint:
        raise InputError(_changed(source, "it belongs to another run"))
    if table.num_rows != source.rows:
        raise InputError(_changed(source, f"{table.num_rows} rows, the manifest says {source.rows}"))
    wanted = score_schema(arrow_id_type(source.id_type))
    wanted = pa.schema([wanted.field(name) for name in columns]) if columns else wanted
    if not table.schema.equals(wanted):
        raise InputError(_changed(source, f"its columns are {table.schema.to_string(show_field_metadata=False)}"))
    return table.cast(wanted)


def _changed(source: ScoreSource, how: str) -> str:
    return f"{source.url}: not the score object that its run committed: {how}; classify again into a new run"


def read_placed(source: ScoreSource, columns: list[str] | None = None) -> pa.Table:
    """Rows of one score object with their `_healpix_29`, null where they have no place on the sky.

    `columns` must have ra, dec and flags.
    """
    table = read_scores(source, columns)
    placed, index = placed_index(table)
    healpix = np.zeros(len(placed), np.int64)
    healpix[placed] = index
    return table.add_column(0, HEALPIX, pa.array(healpix, mask=~placed))


def placed_index(table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows have a place on the sky, shape (N,), and `_healpix_29` of those that have, shape (placed,)."""
    ra, dec = (table[name].fill_null(np.nan).to_numpy() for name in ("ra", "dec"))
    placed = is_placed(ra, dec, table["flags"].to_numpy())
    return placed, spatial_index(ra[placed], dec[placed])
