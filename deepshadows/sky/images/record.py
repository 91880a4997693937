"""One image as its user has it, and what of an input one task converts. Opens nothing. No Ray, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.settings import Cutouts as Settings

ROWS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One image as found.

    Attributes
    ----------
    object_id : int or str
        As given, or made from the name of the file and the row; anything else is a reject.
    where : str
        File, and member or row.
    pixels : uint8 (S, S, 3), optional
        None where `reason` says why there are none.
    label : object
        None where there is none.
    ra, dec : float
        ICRS degrees, NaN where not given.
    flags : int
        Of `schema.Flag`.
    fov_arcsec : float, optional
        Field of view, where the file states it.
    """

    object_id: Any
    where: str
    pixels: NDArray[np.uint8] | None = None
    reason: str = ""
    label: Any = None
    ra: Any = math.nan
    dec: Any = math.nan
    flags: int = 0
    fov_arcsec: float | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object of a folder: its identifier, its files, and the class that its folder names."""

    object_id: int | str
    files: tuple[storage.StoredObject, ...]
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one task converts: rows `first_row` to `first_row + rows` of a file, a whole file, or items of a folder."""

    form: str
    url: str
    name: str
    """What its shards are called by, unique within the input."""
    stem: str = ""
    """What identifiers begin with where a file has none."""
    first_row: int = 0
    rows: int | None = None
    """None where only reading it tells."""
    items: tuple[Item, ...] = ()

    def steps(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 row of what is read at once."""
        assert self.rows is not None
        end = self.first_row + self.rows
        for first in range(self.first_row, end, ROWS_AT_ONCE):
            yield first, min(first + ROWS_AT_ONCE, end)


def column_names(settings: Settings) -> dict[str, str]:
    """The user's names of what may stand beside an image."""
    return {
        "id": settings.id_column,
        "label": settings.label_column,
        "ra": settings.ra_column,
        "dec": settings.dec_column,
    }


def images_of(
    source: Source, first: int, block: NDArray[np.uint8], columns: Mapping[str, NDArray[Any] | None]
) -> Iterator[Image]:
    """Rows of an array (N, S, S, 3) with those of its columns that are there; `first` is the number of the first."""
    values = {what: column.tolist() for what, column in columns.items() if column is not None}
    for number, pixels in enumerate(block):
        row = first + number
        given = {what: _text(column[number]) for what, column in values.items()}
        yield Image(
            object_id=given.get("id", f"{source.stem}-{row:06d}"),
            where=f"{source.url} row {row}",
            pixels=pixels,
            label=given.get("label"),
            ra=given.get("ra", math.nan),
            dec=given.get("dec", math.nan),
        )


def _text(value: Any) -> Any:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
