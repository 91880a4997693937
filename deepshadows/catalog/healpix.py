"""Where rows lie on the sky: HEALPix index and partition numbers. Arrays in, arrays out; no I/O, no Ray, no torch.

`hats` is not imported here: every worker would pay 1.5 s for it, and needs the index alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import lonlat_to_healpix, neighbours
from numpy.typing import NDArray

from deepshadows.schema import Flag

INDEX_ORDER = 29
COUNT_ORDER = 10
"""Rows are counted in pixels of 3.4 arcmin: fine enough for 1 M rows a partition up to 85,000 rows/arcmin2."""
SKY_END = 12 << 2 * INDEX_ORDER
"""One beyond the largest `_healpix_29`."""
UNPLACED = -1
"""The partition number of rows that have no place on the sky."""
_NO_PLACE = Flag.BAD_POSITION.bit | Flag.NO_POSITION.bit


@dataclass(frozen=True, slots=True)
class Partition:
    """One file of the catalogue: a HEALPix pixel and how many rows lie in it."""

    order: int
    pixel: int
    rows: int

    @property
    def first_index(self) -> int:
        """Smallest `_healpix_29` in the pixel."""
        return self.pixel << 2 * (INDEX_ORDER - self.order)

    @property
    def end_index(self) -> int:
        """Smallest `_healpix_29` beyond the pixel."""
        return (self.pixel + 1) << 2 * (INDEX_ORDER - self.order)

    @property
    def path(self) -> str:
        """Its file below the table, as HATS names it."""
        folder = self.pixel // 10_000 * 10_000
        return f"dataset/Norder={self.order}/Dir={folder}/Npix={self.pixel}.parquet"


def is_placed(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], flags: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Rows that have a place on the sky, shape (N,); NaN stands for null.

    The HEALPix library gives NaN right ascensions a pixel like any other, and ends the process on NaN declinations.
    """
    in_range = (ra_deg >= 0) & (ra_deg <= 360) & (np.abs(dec_deg) <= 90)
    return np.asarray(in_range & ((flags & _NO_PLACE) == 0), dtype=np.bool_)


def sky_cells(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], order: int) -> NDArray[np.int64]:
    """The pixel of `order` that holds each placed position, NESTED, shape (N,)."""
    return spatial_index(ra_deg, dec_deg) >> 2 * (INDEX_ORDER - order)


def spatial_index(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64]) -> NDArray[np.int64]:
    """`_healpix_29`, NESTED, of placed rows, shape (N,)."""
    if len(ra_deg) == 0:
        return np.empty(0, np.int64)
    lon, lat = Longitude(ra_deg, unit="deg"), Latitude(dec_deg, unit="deg")
    return np.asarray(lonlat_to_healpix(lon, lat, INDEX_ORDER, num_threads=1)).astype(np.int64)


def count_pixels(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Occupied pixels of COUNT_ORDER and the rows in each."""
    pixels, counts = np.unique(index >> 2 * (INDEX_ORDER - COUNT_ORDER), return_counts=True)
    return pixels, counts.astype(np.int64)


def partition_numbers(index: NDArray[np.int64], partitions: list[Partition]) -> NDArray[np.int64]:
    """Position in `partitions` of the one that holds each row, of the shape of `index`."""
    first = np.array([partition.first_index for partition in partitions], dtype=np.int64)
    return np.searchsorted(first, index, side="right").astype(np.int64) - 1


def cover_sky(partitions: list[Partition]) -> list[Partition]:
    """The partitions and the fewest empty pixels that fill the rest of the sky, in the order of `_healpix_29`."""
    cells: list[Partition] = []
    position = 0
    for first, partition in [*((entry.first_index, entry) for entry in partitions), (SKY_END, None)]:
        while position < first:
            order = next(k for k in range(INDEX_ORDER + 1) if _fits(position, first, k))
            cells.append(Partition(order, position >> 2 * (INDEX_ORDER - order), 0))
            position = cells[-1].end_index
        if partition is not None:
            cells.append(partition)
            position = partition.end_index
    return cells


def _fits(position: int, end: int, order: int) -> bool:
    """Whether a pixel of that order begins at `position` and ends by `end`."""
    size = 1 << 2 * (INDEX_ORDER - order)
    return position % size == 0 and position + size <= end


def with_neighbours(pixels: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """The pixels and all that touch them, sorted, each once."""
    if not len(pixels):
        return np.empty(0, np.int64)
    around = np.asarray(neighbours(pixels.astype(np.uint64), order)).astype(np.int64)
    return np.unique(around[around >= 0])


def overlapping(partitions: list[Partition], pixels: NDArray[np.int64], order: int) -> list[Partition]:
    """The partitions that share sky with any of the pixels (sorted, of this order)."""
    first, last = pixels << 2 * (INDEX_ORDER - order), ((pixels + 1) << 2 * (INDEX_ORDER - order)) - 1
    return [
        partition
        for partition in partitions
        if np.searchsorted(first, partition.end_index) > np.searchsorted(last, partition.first_index)
    ]
