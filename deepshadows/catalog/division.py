"""How a version is divided: cells that cover the sky, and ranges of object_id. Arrays in, arrays out; no I/O, no Ray.

A cell is a HEALPix pixel: a partition of the table where rows lie in it, else an empty one. Both have a margin where
rows lie just outside, so that a cross-match across the edge of the survey finds its pairs too. Like `healpix`, without
`hats`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cdshealpix.nested import external_neighbours, neighbours
from numpy.typing import NDArray

from deepshadows.catalog.healpix import COUNT_ORDER, INDEX_ORDER, Partition

ID_PART_ROWS = 4_000_000
"""Rows of one part of the id index that is written anew; one that grows beyond twice as many is cut."""
ID_SAMPLE_ROWS = 1_000
"""One object_id in so many decides where the parts begin."""


@dataclass(frozen=True)
class Division:
    """The cells of a version and the parts of its id index; tasks get it through Ray's object store.

    Attributes
    ----------
    cells : list of Partition
        They cover the sky, in the order of `_healpix_29`; `rows` is 0 for the empty ones.
    margin_order : int
        Order of the smallest pixels that are wider than the margin.
    id_bounds : pa.Array
        Smallest object_id of each index part but the first, ascending.
    """

    cells: list[Partition]
    margin_order: int
    id_bounds: pa.Array

    def cells_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the cell in which each `_healpix_29` lies, of the same shape."""
        return np.searchsorted(self._first, index, side="right").astype(np.int64) - 1

    @functools.cached_property
    def _first(self) -> NDArray[np.int64]:
        return np.array([cell.first_index for cell in self.cells], dtype=np.int64)

    def margins_of(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that lie in the margin of cells other than their own.

        Parameters
        ----------
        index : ndarray
            `_healpix_29` of the rows, shape (N,).

        Returns
        -------
        rows, cells : ndarray
            Pairs of row number and cell, shape (M,); a row near a corner is in several.
        """
        rows = np.flatnonzero(self._near_an_edge(index))
        near = self._around(index[rows], self.margin_order)
        own = self.cells_of(index[rows])
        row, place = np.nonzero((near >= 0) & (near != own[:, None]))
        pairs = np.unique(np.stack([rows[row], near[row, place]]), axis=1)
        return pairs[0], pairs[1]

    def _near_an_edge(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Rows that may lie in a margin: cells around their pixel of COUNT_ORDER are not all the same."""
        pixels, inverse = np.unique(index >> 2 * (INDEX_ORDER - COUNT_ORDER), return_inverse=True)
        first = pixels << 2 * (INDEX_ORDER - COUNT_ORDER)
        near = self._around(first, COUNT_ORDER)
        edge = ((near >= 0) & (near != self.cells_of(first)[:, None])).any(axis=1)
        return np.asarray(edge[inverse], dtype=np.bool_)

    def _around(self, index: NDArray[np.int64], order: int) -> NDArray[np.int64]:
        """Cells of the nine pixels of `order` at and around each index, shape (N, 9); -1 where there is none."""
        if not len(index):
            return np.empty((0, 9), np.int64)
        pixels = (index >> 2 * (INDEX_ORDER - order)).astype(np.uint64)
        near = np.asarray(neighbours(pixels, order, num_threads=1), dtype=np.int64)
        return np.where(near < 0, -1, self.cells_of(near << 2 * (INDEX_ORDER - order)))

    def cells_around(self, pixel: Partition) -> set[int]:
        """Cells whose margin may hold rows of a pixel, whether this is a cell or not."""
        deeper = self.margin_order - pixel.order
        edges, corners = external_neighbours(pixel.pixel, pixel.order, deeper, num_threads=1)
        border = np.concatenate([edges.ravel().astype(np.int64), corners.ravel().astype(np.int64)])
        border = border[border >= 0] << 2 * (INDEX_ORDER - self.margin_order)
        return set(self.cells_of(border).tolist()) | set(self.cells_within(pixel))

    def cells_within(self, pixel: Partition) -> range:
        """Cells that a pixel has a part in."""
        first, last = self.cells_of(np.array([pixel.first_index, pixel.end_index - 1]))
        return range(int(first), int(last) + 1)

    def parts_of(self, ids: pa.Array) -> NDArray[np.int64]:
        """Number of the index part of each object_id, shape (N,)."""
        return np.asarray(pc.search_sorted(self.id_bounds, ids, side="right")).astype(np.int64)


def sample_ids(ids: pa.Array) -> pa.Array:
    """A few identifiers that stand for all: evenly spaced in their order, the first left out."""
    ordered = ids.take(pc.array_sort_indices(ids))
    return ordered.take(pa.array(np.arange(ID_SAMPLE_ROWS // 2, len(ids), ID_SAMPLE_ROWS)))


def id_bounds(samples: list[pa.Array], id_type: pa.DataType) -> pa.Array:
    """Where index parts of about ID_PART_ROWS begin, from what `sample_ids` found."""
    ids = pa.chunked_array(samples, id_type).combine_chunks()
    ordered = ids.take(pc.array_sort_indices(ids))
    step = ID_PART_ROWS // ID_SAMPLE_ROWS
    return pc.unique(ordered.take(pa.array(np.arange(step, len(ordered), step), pa.int64())))
