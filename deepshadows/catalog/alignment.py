"""Rows counted over the sky and the partitions they need, by `hats`. Arrays in and out; no I/O, no Ray, no torch."""

from __future__ import annotations

import numpy as np
from hats.pixel_math.partition_stats import generate_alignment
from hats.pixel_math.sparse_histogram import HistogramAggregator, SparseHistogram
from numpy.typing import NDArray

from deepshadows.catalog.healpix import COUNT_ORDER, Partition
from deepshadows.outcomes import UsageError

SKYMAP_ORDER = 8
"""Pixels of 14 arcmin in skymap.fits."""


class SkyCount:
    """Rows in each pixel of COUNT_ORDER, added up part by part; 100 MB of address space, whatever the rows."""

    def __init__(self) -> None:
        self._sum = HistogramAggregator(COUNT_ORDER)

    def add(self, part: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        self._sum.add(SparseHistogram(*part, COUNT_ORDER))

    def at_order(self, order: int) -> NDArray[np.int64]:
        """Rows in each pixel of a coarser order, shape (12 * 4**order,)."""
        return np.asarray(self._sum.full_histogram.reshape(12 * 4**order, -1).sum(axis=1), dtype=np.int64)

    def occupied(self) -> NDArray[np.int64]:
        """Pixels of COUNT_ORDER that have rows, shape (P,)."""
        return np.flatnonzero(self._sum.full_histogram).astype(np.int64)

    def align(self, partition_rows: int) -> list[Partition]:
        """The largest pixels that hold at most `partition_rows`, in the order of `_healpix_29`.

        The alignment is that of `hats`, whose loops run over every pixel of the order they start from (9 s at order
        10); so it is started from the coarsest order whose pixels are all small enough, which gives the same.

        Raises
        ------
        UsageError
            A pixel of COUNT_ORDER holds more rows than that.
        """
        order, counts = COUNT_ORDER, self.at_order(COUNT_ORDER)
        if counts.max() > partition_rows:
            raise UsageError(
                f"--partition-rows {partition_rows} is too small: {counts.max()} rows lie within one pixel of "
                f"3.4 arcmin; give at least that many"
            )
        while order and (coarser := self.at_order(order - 1)).max() <= partition_rows:
            order, counts = order - 1, coarser
        aligned = generate_alignment(counts, highest_order=order, threshold=partition_rows)
        found = {Partition(*(int(number) for number in entry)) for entry in aligned if entry is not None}
        return sorted(found, key=lambda partition: partition.first_index)


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
