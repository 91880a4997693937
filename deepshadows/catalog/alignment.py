"""Rows counted over the sky, and the partitions they need. Arrays in and out; no I/O, no Ray, no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from deepshadows.catalog.healpix import COUNT_ORDER, Partition
from deepshadows.outcomes import UsageError

SKYMAP_ORDER = 8
"""Pixels of 14 arcmin in skymap.fits."""


class SkyCount:
    """Rows in each pixel of COUNT_ORDER, added up part by part; 100 MB of address space, whatever the rows."""

    def __init__(self) -> None:
        self._counts = np.zeros(12 * 4**COUNT_ORDER, np.int64)

    def add(self, part: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        """Add different pixels and the rows in each."""
        pixels, rows = part
        self._counts[pixels] += rows

    def at_order(self, order: int) -> NDArray[np.int64]:
        """Rows in each pixel of a coarser order, shape (12 * 4**order,)."""
        return np.asarray(self._counts.reshape(12 * 4**order, -1).sum(axis=1), dtype=np.int64)

    def occupied(self) -> NDArray[np.int64]:
        """Pixels of COUNT_ORDER that have rows, shape (P,)."""
        return np.flatnonzero(self._counts).astype(np.int64)

    def align(self, partition_rows: int) -> list[Partition]:
        """The largest pixels that hold at most `partition_rows`, in the order of `_healpix_29`; none is empty.

        The same as `hats` finds by loops over every pixel, which take 9 s from order 10 on.
        """
        return self.divide((Partition(0, pixel, 0) for pixel in range(12)), partition_rows)

    def divide(self, areas: Iterable[Partition], partition_rows: int) -> list[Partition]:
        """The same within some pixels.

        Raises
        ------
        UsageError
            A pixel of COUNT_ORDER holds more rows than that.
        """
        below = np.concatenate([[0], np.cumsum(self._counts)])
        found = [partition for area in areas for partition in _divide(area, below, partition_rows)]
        most = max((partition.rows for partition in found), default=0)
        if most > partition_rows:
            raise UsageError(
                f"--partition-rows {partition_rows} is too small: {most} rows lie within one pixel of 3.4 arcmin; "
                "give at least that many"
            )
        return found


def _divide(pixel: Partition, below: NDArray[np.int64], partition_rows: int) -> list[Partition]:
    """`below` has the rows in all pixels of COUNT_ORDER before each, and at its end all."""
    shift = 2 * (COUNT_ORDER - pixel.order)
    rows = int(below[(pixel.pixel + 1) << shift] - below[pixel.pixel << shift])
    if not rows:
        return []
    if rows <= partition_rows or pixel.order == COUNT_ORDER:
        return [Partition(pixel.order, pixel.pixel, rows)]
    children = (Partition(pixel.order + 1, 4 * pixel.pixel + number, 0) for number in range(4))
    return [found for child in children for found in _divide(child, below, partition_rows)]


def carried_counts(skymap: NDArray[np.int64], carried: list[Partition]) -> NDArray[np.int64]:
    """Of the rows in each pixel of SKYMAP_ORDER, those in some partitions; both of shape (12 * 4**SKYMAP_ORDER,)."""
    counts = np.zeros_like(skymap)
    for partition in carried:
        shift = 2 * (SKYMAP_ORDER - partition.order)
        if shift >= 0:
            pixels = slice(partition.pixel << shift, (partition.pixel + 1) << shift)
            counts[pixels] = skymap[pixels]
        else:
            counts[partition.pixel >> -shift] += partition.rows
    return counts
