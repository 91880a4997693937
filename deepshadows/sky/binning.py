"""Cut-outs on a grid of 2x2 pixels anchored at tile pixel 0: mean of the valid pixels, stretched. No I/O, no torch.

Where cut-outs cover much of a tile it is binned and stretched once, by blocks of rows that fit the cache, and windows
of the colours are copied out; where they are few each window is binned alone, from the rows that it needs. Both do the
same arithmetic in the same order on each pixel: the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from deepshadows.schema import Flag
from deepshadows.sky.stretch import Stretch
from deepshadows.sky.tile_rows import Pixels, Source, each, each_window

_SOME_MASKED, _SATURATED = 64, 128  # bits of the status plane; bit b (< 6) says that channel b has no valid pixel
_DENSE_SHARE = 0.5
_BLOCK_BYTES = 1 << 20
_CHUNK = 512
_Scalar = TypeVar("_Scalar", bound=np.generic)
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Look:
    """What a binned pixel becomes: stretch, bands, and whether rows or columns are mirrored so that north is up."""

    stretch: Stretch
    bands: tuple[str, ...]
    flip_rows: bool
    flip_columns: bool

    def turned(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image (H, W, B) mirrored so: a view."""
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def _sum2x2(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum over 2x2 blocks of the last two axes, always in the same order, so that bits repeat."""
    upper = values[..., ::2, ::2] + values[..., ::2, 1::2]
    upper += values[..., 1::2, ::2] + values[..., 1::2, 1::2]
    return upper


def _binned(pixels: Pixels, look: Look) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Colours (H/2, W/2, B) of a rectangle (B, H, W) and its status plane, None where that is zero."""
    mean = _sum2x2(_even(pixels.flux))
    status: NDArray[np.uint8] | None = None
    if pixels.valid is None:
        mean /= np.float32(4)
    else:
        count = _sum2x2(_even(pixels.valid).astype(np.float32))
        mean /= np.maximum(count, np.float32(1))
        status = np.where((count < 4).any(0), np.uint8(_SOME_MASKED), np.uint8(0))
        for channel in range(len(count)):
            status |= np.where(count[channel] == 0, np.uint8(1 << channel), np.uint8(0))
    if pixels.saturated is not None:
        full = _sum2x2(np.asarray(_even(pixels.saturated).any(0)).astype(np.float32)) > 0
        status = np.zeros(full.shape, np.uint8) if status is None else status
        status |= np.where(full, np.uint8(_SATURATED), np.uint8(0))
    return look.stretch.apply(np.moveaxis(mean, 0, -1), look.bands), status


def _even(plane: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Repeat the last row or column of an odd side, so that its bin is the mean of what is there."""
    pad_rows, pad_columns = plane.shape[1] % 2, plane.shape[2] % 2
    if not (pad_rows or pad_columns):
        return plane
    return np.pad(plane, ((0, 0), (0, pad_rows), (0, pad_columns)), mode="edge")


def reflect(index: Index, length: int) -> Index:
    """Indices beyond an edge mirrored back inside, the edge pixel repeated."""
    folded = np.mod(index, 2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def _status_flags(status: NDArray[np.uint8], channels: int) -> NDArray[np.int32]:
    """Flags of each field from its status plane (N, S, S)."""
    flat = status.reshape(len(status), -1)
    some, everywhere = np.bitwise_or.reduce(flat, axis=1), np.bitwise_and.reduce(flat, axis=1)
    flags = np.where(some & _SOME_MASKED, Flag.SOME_MASKED.bit, 0)
    flags |= np.where(some & _SATURATED, Flag.SATURATED.bit, 0)
    flags |= np.where(everywhere & ((1 << channels) - 1), Flag.ALL_MASKED.bit, 0)
    return flags.astype(np.int32)


class BinnedCutouts:
    """Cut-outs of one tile, taken a part at a time.

    Parameters
    ----------
    source : Source
        The tile.
    x_edge, y_edge : float64 (N,)
        Centres in pixels, counted from the outer edge of pixel 0; inside the tile.
    size_pix : int
        Side of a cut-out in bins.
    look : Look
        What becomes of a bin.
    threads : int
        Blocks of rows that are read and binned at one time.
    """

    def __init__(
        self,
        source: Source,
        x_edge: NDArray[np.float64],
        y_edge: NDArray[np.float64],
        size_pix: int,
        look: Look,
        threads: int = 1,
    ) -> None:
        height, width = source.shape
        self._size, self._look = size_pix, look
        self._shape = -(-height // 2), -(-width // 2)
        self._left = np.rint(x_edge / 2 - size_pix / 2).astype(np.int64)
        self._top = np.rint(y_edge / 2 - size_pix / 2).astype(np.int64)
        over = (2 * (self._left + size_pix) > width) | (2 * (self._top + size_pix) > height)
        self._partial = (self._left < 0) | (self._top < 0) | over
        dense = len(x_edge) * size_pix**2 > _DENSE_SHARE * self._shape[0] * self._shape[1]
        self._plane = _binned_tile(source, look, threads) if dense else None
        self._alone = None if dense else self._each_alone(source, threads)

    def take(self, part: slice) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Images uint8 (n, S, S, B), north up, and flags int32 (n,) of some of the positions."""
        if self._alone is not None:
            images, flags = self._alone
            return images[part], flags[part]
        assert self._plane is not None
        colours, status = self._plane
        top, left = self._top[part], self._left[part]
        flags = np.where(self._partial[part], Flag.PARTIAL_FIELD.bit, 0).astype(np.int32)
        height, width = self._shape
        images = self._windows(
            colours,
            height - self._size - top if self._look.flip_rows else top,
            width - self._size - left if self._look.flip_columns else left,
        )
        if status is not None:
            for start in range(0, len(top), _CHUNK):
                few = slice(start, start + _CHUNK)
                flags[few] |= _status_flags(
                    self._windows(status[..., None], top[few], left[few]), len(self._look.bands)
                )
        return images, flags

    def _windows(self, plane: NDArray[np.uint8], top: Index, left: Index) -> NDArray[np.uint8]:
        """Windows (n, S, S, C) of a plane (H, W, C) from these corners on, reflected where they reach over an edge."""
        size, channels = self._size, plane.shape[2]
        height, width = self._shape
        inside = (top >= 0) & (left >= 0) & (top + size <= height) & (left + size <= width)
        rows = plane.reshape(height, width * channels)
        if (
            len(top) and inside.all()
        ):  # lines of 64 x 3 bytes lie together: 2 us a window, many times more pixel by pixel
            windows = sliding_window_view(rows, (size, size * channels))[:, ::channels]
            return windows[top, left].reshape(-1, size, size, channels)
        images = np.empty((len(top), size, size, channels), np.uint8)
        if inside.any():
            images[inside] = self._windows(plane, top[inside], left[inside])
        lines, columns = self._bins(top[~inside], left[~inside])
        images[~inside] = plane[lines[:, :, None], columns[:, None, :]]
        return images

    def _bins(self, top: Index, left: Index) -> tuple[Index, Index]:
        """Bins of each field, those over the edge reflected: rows and columns, (n, S) each."""
        steps = np.arange(self._size)
        return reflect(top[:, None] + steps, self._shape[0]), reflect(left[:, None] + steps, self._shape[1])

    def _each_alone(self, source: Source, threads: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """All cut-outs, each from the rows that it needs."""
        channels = len(self._look.bands)
        images = np.empty((len(self._top), self._size, self._size, channels), np.uint8)
        flags = np.where(self._partial, Flag.PARTIAL_FIELD.bit, 0).astype(np.int32)
        rows, columns = self._bins(self._top, self._left)
        first = [2 * index.min(1) for index in (rows, columns)]
        last = [
            np.minimum(2 * index.max(1) + 2, side) for index, side in zip((rows, columns), source.shape, strict=True)
        ]

        def work(number: int, at_hand: Pixels) -> None:
            colours, status = _binned(at_hand, self._look)
            where = np.ix_(rows[number] - first[0][number] // 2, columns[number] - first[1][number] // 2)
            images[number] = self._look.turned(colours[where])
            if status is not None:
                flags[number] |= _status_flags(status[where][None], channels)[0]

        each_window(source, np.stack([first[0], last[0], first[1], last[1]], axis=1), work, threads)
        return images, flags


def _binned_tile(source: Source, look: Look, threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Colours (H/2, W/2, B) of a whole tile, mirrored, and its status plane as it lies; None where that is zero."""
    height, width = source.shape
    shape = -(-height // 2), -(-width // 2)
    colours = np.empty((*shape, len(look.bands)), np.uint8)
    status = np.zeros(shape, np.uint8)
    seen = look.turned(colours)
    block = max(2, _BLOCK_BYTES // (4 * width) // 2 * 2)
    marked: list[int] = []

    def work(first: int) -> None:
        last = min(first + source.rows_at_once, height)
        at_hand = source.rows(first, last)
        for row in range(first, last, block):
            pixels = at_hand.pixels(slice(row, min(row + block, last)), slice(0, width))
            part, state = _binned(pixels, look)
            at = slice(row // 2, row // 2 + len(part))
            seen[at] = part
            if state is not None:
                status[at] = state
                marked.append(row)

    each(work, range(0, height, source.rows_at_once), threads)
    return colours, status if marked else None
