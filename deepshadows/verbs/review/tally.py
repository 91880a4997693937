"""Totals of the rows of a run or catalogue, taken part by part: bounded memory, however many rows. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows.catalog.healpix import INDEX_ORDER
from deepshadows.catalog.score_objects import placed_index
from deepshadows.model.calibration import at_prevalence
from deepshadows.schema import Flag, count_flags

BINS = 50
THRESHOLDS = (0.5, 0.9, 0.95, 0.99)
FINEST_ORDER = 13
"""Pixels of 26 arcsec: finer than any map needs."""
MOST_PIXELS = 200_000
"""More occupied pixels than this, and the map becomes coarser: 8 MB, or the whole sky at order 7 (27 arcmin)."""
GALLERIES = ("top", "borderline", "random", "out_of_domain")


class SkyCounts:
    """Rows, and selected rows, in the HEALPix pixels that hold any; as fine as MOST_PIXELS allows."""

    def __init__(self) -> None:
        self.order = FINEST_ORDER
        self.pixels: NDArray[np.int64] = np.empty(0, np.int64)
        self.counts: NDArray[np.int64] = np.empty((0, 2), np.int64)
        """Rows and selected rows of each pixel, shape (P, 2)."""

    def add(self, index: NDArray[np.int64], selected: NDArray[np.bool_]) -> None:
        """Count rows by their `_healpix_29`."""
        counts = np.stack([np.ones(len(index), np.int64), selected.astype(np.int64)], axis=1)
        self._merge(index >> 2 * (INDEX_ORDER - self.order), counts)
        while len(self.pixels) > MOST_PIXELS:
            self._coarsen()

    def coarsened(self, order: int) -> SkyCounts:
        """The same counts in pixels of at most this order."""
        other = SkyCounts()
        other.order, other.pixels, other.counts = self.order, self.pixels, self.counts
        while other.order > order:
            other._coarsen()
        return other

    def _coarsen(self) -> None:
        pixels, counts = self.pixels >> 2, self.counts
        self.order -= 1
        self.pixels, self.counts = np.empty(0, np.int64), np.empty((0, 2), np.int64)
        self._merge(pixels, counts)

    def _merge(self, pixels: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        both = np.concatenate([self.pixels, pixels])
        self.pixels, place = np.unique(both, return_inverse=True)
        total = np.zeros((len(self.pixels), 2), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts]))
        self.counts = total


class Chosen:
    """Of all rows that were added, the `count` with the smallest keys, in their order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys = np.empty(0)
        self.rows: pa.Table | None = None

    def add(self, rows: pa.Table, keys: NDArray[np.float64]) -> None:
        """Offer rows with their keys, float64 (N,); those with a NaN are not wanted."""
        worst = self._keys[-1] if len(self._keys) == self._count and self._count else np.inf
        wanted = np.flatnonzero(keys < worst)
        if len(wanted) > self._count:
            wanted = wanted[np.argpartition(keys[wanted], self._count - 1)[: self._count]]
        if not len(wanted):
            return
        offered = rows.take(pa.array(np.sort(wanted)))
        together = offered if self.rows is None else pa.concat_tables([self.rows, offered])
        all_keys = np.concatenate([self._keys, keys[np.sort(wanted)]])
        best = np.argsort(all_keys, kind="stable")[: self._count]
        self._keys, self.rows = all_keys[best], together.take(pa.array(best))


@dataclass(frozen=True, kw_only=True)
class Above:
    """Rows at or above a threshold, and how many LSBGs are to be expected among them at the survey's prevalence."""

    threshold: float
    rows: int
    expected: float | None


class Tally:
    """Everything that a page tells of rows.

    Attributes
    ----------
    rows, scored, selected, unplaced : int
    histogram : int64 (BINS,)
        Scored rows by p_lsbg, from 0 to 1.
    flags : Counter
        Rows that carry each flag.
    sky : SkyCounts
    galleries : dict of Chosen
        By the names in GALLERIES.
    """

    def __init__(self, *, threshold: float, prevalence: float | None, shown: int, seed: int) -> None:
        self.threshold = threshold
        self.rows = self.scored = self.selected = self.unplaced = 0
        self.histogram = np.zeros(BINS, np.int64)
        self.flags: Counter[str] = Counter()
        self.sky = SkyCounts()
        self.galleries = {name: Chosen(shown) for name in GALLERIES}
        self._prevalence = prevalence
        self._above = {level: [0, 0.0] for level in sorted({*THRESHOLDS, threshold})}
        self._rng = np.random.default_rng(seed)

    def add(self, table: pa.Table) -> None:
        """Take rows with the columns of a score table."""
        p = np.asarray(table["p_lsbg"].fill_null(np.nan).to_numpy(), dtype=np.float64)
        flags = table["flags"].to_numpy()
        scored = np.isfinite(p)
        selected = np.nan_to_num(p, nan=-1.0) >= self.threshold
        placed, index = placed_index(table)
        self.rows += len(p)
        self.scored += int(scored.sum())
        self.selected += int(selected.sum())
        self.unplaced += len(p) - len(index)
        self.flags.update(count_flags(flags))
        self.histogram += np.histogram(p[scored], BINS, (0, 1))[0]
        self.sky.add(index, selected[placed])
        self._count_above(p)
        self._choose(table, p, scored, (flags & Flag.OUT_OF_DOMAIN.bit) != 0)

    def above(self) -> list[Above]:
        """By threshold, from the lowest."""
        known = self._prevalence is not None
        return [
            Above(threshold=level, rows=int(rows), expected=expected if known else None)
            for level, (rows, expected) in self._above.items()
        ]

    def _count_above(self, p: NDArray[np.float64]) -> None:
        for level, told in self._above.items():
            chosen = p[p >= level]
            told[0] += len(chosen)
            if self._prevalence is not None:
                told[1] += float(at_prevalence(chosen, self._prevalence).sum())

    def _choose(
        self, table: pa.Table, p: NDArray[np.float64], scored: NDArray[np.bool_], foreign: NDArray[np.bool_]
    ) -> None:
        draw = self._rng.random(len(p))
        keys = {
            "top": -p,
            "borderline": np.abs(p - self.threshold),
            "random": np.where(scored, draw, np.nan),
            "out_of_domain": np.where(scored & foreign, draw, np.nan),
        }
        for name, key in keys.items():
            self.galleries[name].add(table, key)
