"""Which labelled rows are held out to validate: whole blocks of sky, or whole objects. No torch, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
    """Number of the arcsecond cell of each row: rows of one position share it."""
    return _cells(ra, dec, SAME_POSITION_DEG)


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
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = order[before < fraction * len(groups)]
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[taken if len(taken) < len(names) else taken[:-1]] = True
    held: NDArray[np.bool_] = chosen[member]
    return held
