"""Which labelled rows are held out to validate: whole blocks of sky, or whole objects. No torch, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

F64 = NDArray[np.float64]

BLOCKS_WANTED = 64
LARGEST_BLOCK_DEG = 1.0
SMALLEST_BLOCK_DEG = 1.0 / 32
"""1.9 arcmin, three fields of a cut-out."""
SAME_POSITION_DEG = 1.0 / 3600


def sky_blocks(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the block of sky that each row lies in.

    Blocks have equal sides of 1 deg, halved until 64 of them are occupied or they are 1.9 arcmin, so that the sample
    of one tile can be split as well as that of a survey.

    Parameters
    ----------
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    """
    side = LARGEST_BLOCK_DEG
    blocks = _cells(ra, dec, side)
    while side > SMALLEST_BLOCK_DEG and len(np.unique(blocks)) < BLOCKS_WANTED:
        side /= 2
        blocks = _cells(ra, dec, side)
    return blocks


def same_position(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """A number that rows within an arcsecond share, whether of each other or through rows between them.

    Parameters
    ----------
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    """
    if not len(ra):
        return np.empty(0, np.int64)
    places, of_row = np.unique(np.stack([np.mod(ra, 360), dec]), axis=1, return_inverse=True)
    lon, lat = np.radians(places)
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2 * np.sin(np.radians(SAME_POSITION_DEG) / 2)
    pairs = cKDTree(points).query_pairs(chord, output_type="ndarray")
    touching = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    _, member = connected_components(touching, directed=False)
    lowest = np.full(len(points), np.iinfo(np.int64).max)
    np.minimum.at(lowest, member, _cells(places[0], places[1], SAME_POSITION_DEG))
    shared: NDArray[np.int64] = lowest[member[of_row]]
    return shared


def _cells(ra: NDArray[np.float64], dec: NDArray[np.float64], side_deg: float) -> NDArray[np.int64]:
    row = np.floor((dec + 90) / side_deg).astype(np.int64)
    middle = np.radians((row + 0.5) * side_deg - 90)
    column = np.floor(np.mod(ra, 360) * np.maximum(np.cos(middle), 0) / side_deg).astype(np.int64)
    cells: NDArray[np.int64] = row * (int(360 / side_deg) + 1) + column
    return cells


def id_groups(object_ids: Iterable[object]) -> NDArray[np.int64]:
    """A number for each identifier, the same in every process; never that of a sky cell, which are not negative."""
    digests = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in object_ids)
    return -1 - np.array([int.from_bytes(digest) >> 2 for digest in digests], dtype=np.int64)


def groups(
    ra: F64, dec: F64, object_ids: pa.Array, by_place: Callable[[F64, F64], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Rows that must stay together share a number: by their place, and by their identifier where they have none.

    Parameters
    ----------
    ra, dec : float64 (N,)
        ICRS degrees, not finite where a row has no position.
    object_ids : pa.Array (N,)
    by_place : callable
        `sky_blocks` or `same_position`.
    """
    numbers = np.empty(len(ra), np.int64)
    placed = np.isfinite(ra) & np.isfinite(dec)
    numbers[placed] = by_place(ra[placed], dec[placed])
    if not placed.all():
        numbers[~placed] = id_groups(object_ids.filter(pa.array(~placed)).to_pylist())
    return numbers


def hold_out(groups: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Hold out whole groups, drawn in random order, until at least `fraction` of the rows are held out.

    A group that would take the rows held out beyond twice that share, such as a deep field among scattered objects, is
    passed over; where every group is so large, the smallest is held out.

    Parameters
    ----------
    groups : int64 (N,)
        Rows of one group stay together.

    Returns
    -------
    bool (N,)
        True for the rows held out; always some, and never all where there are two groups.
    """
    names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    wanted, held, taken = fraction * len(groups), 0, []
    for group in order:
        if held < wanted and held + sizes[group] <= 2 * wanted:
            taken.append(group)
            held += sizes[group]
    if not taken:
        taken = [order[np.argmin(sizes[order])]]
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[taken if len(taken) < len(names) else taken[:-1]] = True
    held_out: NDArray[np.bool_] = chosen[member]
    return held_out
