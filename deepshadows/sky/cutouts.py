"""Positions on a tile in; network images and flags out. numpy only: no I/O, no Ray, no torch.

Images are (row, column, channel), north up and east left, channels R, G, B = z, r, g. Tiles within 1 % of 0.262"/px
are binned 2x2 on a grid anchored at tile pixel 0 (mean of the valid pixels), so a cut-out's pixels do not depend on
how many others are cut; all other scales are resampled, area-weighted when shrinking and linear when enlarging.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from deepshadows.schema import Flag
from deepshadows.sky.stretch import Stretch
from deepshadows.sky.tiles import Tile

NATIVE_SCALE_ARCSEC = 0.262
SCALE_TOLERANCE = 0.01
METHOD = "bin2-mean or area/linear, north up, east left, version 1"
"""Recorded with every run: another method gives other pixels."""

_SOME_MASKED, _SATURATED = 64, 128  # bits of the status plane; bit b (< 6) says that channel b has no valid pixel
_DENSE_SHARE = 0.5
_CHUNK = 512
_ONE_LIMIT = threading.Lock()
"""The number of BLAS threads belongs to the process: whoever changes it must be alone in putting it back."""
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What the network takes: side, field, channels and stretch. From its card."""

    size_pix: int = 64
    fov_arcsec: float = 33.5
    bands: tuple[str, ...] = ("z", "r", "g")
    stretch: Stretch

    @property
    def pitch_arcsec(self) -> float:
        return self.fov_arcsec / self.size_pix


@dataclass(frozen=True)
class Stack:
    """Images uint8 (N, S, S, B) and flags int32 (N,), in the order of the positions."""

    images: NDArray[np.uint8]
    flags: NDArray[np.int32]


def cut(tile: Tile, ra: NDArray[np.float64], dec: NDArray[np.float64], geometry: Geometry) -> Stack:
    """Cut the field around each position.

    Parameters
    ----------
    tile : Tile
        Holds `geometry.bands`, in that order.
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    geometry : Geometry
        Side, field, bands and stretch of the network.

    Returns
    -------
    Stack
        A field that reaches over the tile's edge is edge-reflected (PARTIAL_FIELD); masked pixels are blank sky
        (SOME_MASKED, ALL_MASKED); a position off the tile is OFF_TILE, its image blank.
    """
    if tile.bands != geometry.bands:
        raise ValueError(f"tile has bands {tile.bands}, the network takes {geometry.bands}")
    x, y = tile.wcs.all_world2pix(ra, dec, 0, quiet=True) if len(ra) else (np.empty(0), np.empty(0))
    height, width = tile.shape
    inside = np.isfinite(x) & np.isfinite(y)
    inside &= (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    images = np.zeros((len(ra), geometry.size_pix, geometry.size_pix, len(geometry.bands)), np.uint8)
    flags = np.full(len(ra), Flag.OFF_TILE.bit, dtype=np.int32)
    if inside.any():
        edges = x[inside] + 0.5, y[inside] + 0.5
        native = is_native(tile.pixel_scale_arcsec, geometry)
        images[inside], flags[inside] = (_cut_binned if native else _cut_resampled)(tile, *edges, geometry)
    images = _as_seen(images, tile)
    images[(flags & (Flag.OFF_TILE.bit | Flag.ALL_MASKED.bit)) != 0] = 0
    return Stack(images, flags)


def _as_seen(images: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
    """Mirror so that north is up (row 0) and east is left, as pictures of the sky are; rotations stay."""
    matrix = tile.wcs.pixel_scale_matrix
    if matrix[1, 1] > 0:  # dec grows with the row
        images = images[:, ::-1]
    if matrix[0, 0] > 0:  # ra grows with the column
        images = images[:, :, ::-1]
    return np.ascontiguousarray(images)


def is_native(pixel_scale_arcsec: float, geometry: Geometry) -> bool:
    """Whether 2x2 binning brings this scale to the network's, within 1 %."""
    binned = same_scale(pixel_scale_arcsec, geometry.pitch_arcsec / 2, 2 * SCALE_TOLERANCE)
    return binned and same_scale(pixel_scale_arcsec, NATIVE_SCALE_ARCSEC)


def same_scale(one: float, other: float, tolerance: float = SCALE_TOLERANCE) -> bool:
    """Whether two pixel scales or fields are so alike, within 1 %, that nothing is resampled for the difference."""
    return abs(one / other - 1) <= tolerance


def _sum2x2(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum over 2x2 blocks of the last two axes, always in the same order, so that bits repeat."""
    return (values[..., ::2, ::2] + values[..., ::2, 1::2]) + (values[..., 1::2, ::2] + values[..., 1::2, 1::2])


def _binned(
    flux: NDArray[np.float32], valid: NDArray[np.bool_], saturated: NDArray[np.bool_], geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bin and stretch (..., B, 2H, 2W) to colours (..., H, W, B) and a status plane (..., H, W)."""
    count = _sum2x2(valid.astype(np.float32))
    mean = (_sum2x2(flux) / np.maximum(count, np.float32(1))).astype(np.float32, copy=False)
    colours = geometry.stretch.apply(np.moveaxis(mean, -3, -1), geometry.bands)
    status = np.where((count < 4).any(-3), np.uint8(_SOME_MASKED), np.uint8(0))
    for channel in range(count.shape[-3]):
        status |= np.where(count[..., channel, :, :] == 0, np.uint8(1 << channel), np.uint8(0))
    any_saturated = _sum2x2(np.asarray(saturated.any(-3)).astype(np.float32)) > 0
    return colours, np.where(any_saturated, status | np.uint8(_SATURATED), status)


def _cut_binned(
    tile: Tile, x_edge: NDArray[np.float64], y_edge: NDArray[np.float64], geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """2x2 binning; whole tile first where cut-outs cover much of it, else each field alone: same pixels."""
    size = geometry.size_pix
    height, width = tile.shape
    flux, valid, saturated = _even(tile.flux), _even(tile.valid), _even(tile.saturated)
    binned_height, binned_width = flux.shape[1] // 2, flux.shape[2] // 2
    left = np.rint(x_edge / 2 - size / 2).astype(np.int64)
    top = np.rint(y_edge / 2 - size / 2).astype(np.int64)
    partial = (left < 0) | (top < 0) | (2 * (left + size) > width) | (2 * (top + size) > height)
    rows = _reflect(top[:, None] + np.arange(size), binned_height)
    columns = _reflect(left[:, None] + np.arange(size), binned_width)
    images = np.empty((len(left), size, size, len(geometry.bands)), np.uint8)
    flags = np.where(partial, Flag.PARTIAL_FIELD.bit, 0).astype(np.int32)
    dense = len(left) * size * size > _DENSE_SHARE * binned_height * binned_width
    whole = _binned(flux, valid, saturated, geometry) if dense else None
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        if whole is not None:
            colours, status = whole
            images[part] = colours[rows[part, :, None], columns[part, None, :]]
            status = status[rows[part, :, None], columns[part, None, :]]
        else:
            fine_rows, fine_columns = (
                np.stack([2 * index[part], 2 * index[part] + 1], -1).reshape(-1, 2 * size) for index in (rows, columns)
            )
            window = (slice(None), fine_rows[:, :, None], fine_columns[:, None, :])
            images[part], status = _binned(
                np.moveaxis(flux[window], 0, 1),
                np.moveaxis(valid[window], 0, 1),
                np.moveaxis(saturated[window], 0, 1),
                geometry,
            )
        flags[part] |= _status_flags(status, len(geometry.bands))
    return images, flags


def _even(plane: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Repeat the last row or column of an odd side, so that its bin is the mean of what is there."""
    pad_rows, pad_columns = plane.shape[1] % 2, plane.shape[2] % 2
    if not (pad_rows or pad_columns):
        return plane
    return np.pad(plane, ((0, 0), (0, pad_rows), (0, pad_columns)), mode="edge")


def _reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
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


def resampling_weights(
    centre_pix: float, pitch_pix: float, size_pix: int, first: int, count: int
) -> NDArray[np.float64]:
    """Weights (size_pix, count) that bring input pixels first..first+count to output pixels.

    Parameters
    ----------
    centre_pix : float
        Centre of the output, in input pixels counted from the outer edge of pixel 0.
    pitch_pix : float
        Input pixels per output pixel: area-weighted from 1 up, linear interpolation below.
    """
    low = centre_pix + (np.arange(size_pix) - size_pix / 2) * pitch_pix - first
    edges = np.arange(count)
    if pitch_pix >= 1:
        overlap = np.minimum(low[:, None] + pitch_pix, edges + 1) - np.maximum(low[:, None], edges)
        return np.asarray(np.clip(overlap, 0, None) / pitch_pix)
    middle = low[:, None] + pitch_pix / 2 - 0.5
    return np.asarray(np.clip(1 - np.abs(middle - edges), 0, None))


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """For small products: 1.7 ms of CPU an image, 12.7 in two threads."""
    with _ONE_LIMIT, threadpool_limits(1, "blas"):
        yield


def _cut_resampled(
    tile: Tile, x_edge: NDArray[np.float64], y_edge: NDArray[np.float64], geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Area-weighted or linear resampling of each field from the native pixels."""
    size = geometry.size_pix
    height, width = tile.shape
    pitch = geometry.pitch_arcsec / tile.pixel_scale_arcsec
    count = int(np.ceil(size * pitch)) + 3
    per_reference_pixel = np.float32((geometry.stretch.pixel_scale_arcsec / tile.pixel_scale_arcsec) ** 2)
    images = np.empty((len(x_edge), size, size, len(geometry.bands)), np.uint8)
    flags = np.full(len(x_edge), Flag.RESAMPLED.bit, np.int32)
    with _one_blas_thread():
        for number, (x, y) in enumerate(zip(x_edge, y_edge, strict=True)):
            left, top = (int(np.floor(centre - size * pitch / 2)) - 1 for centre in (x, y))
            rows = _reflect(np.arange(top, top + count), height)
            columns = _reflect(np.arange(left, left + count), width)
            over_y = resampling_weights(y, pitch, size, top, count)
            over_x = resampling_weights(x, pitch, size, left, count)
            patch = np.ix_(np.arange(len(geometry.bands)), rows, columns)
            valid = tile.valid[patch]
            weight = over_y @ valid.astype(np.float64) @ over_x.T
            value = over_y @ tile.flux[patch].astype(np.float64) @ over_x.T
            mean = np.where(weight > 1e-6, value / np.maximum(weight, 1e-6), 0).astype(np.float32)
            images[number] = geometry.stretch.apply(np.moveaxis(mean * per_reference_pixel, 0, -1), geometry.bands)
            if min(x, y, width - x, height - y) < size * pitch / 2:
                flags[number] |= Flag.PARTIAL_FIELD.bit
            if not valid.all():
                flags[number] |= Flag.SOME_MASKED.bit
            if not (weight > 1e-6).any((1, 2)).all():
                flags[number] |= Flag.ALL_MASKED.bit
            if tile.saturated[patch].any():
                flags[number] |= Flag.SATURATED.bit
    return images, flags


def bring_to_field(
    images: NDArray[np.uint8], fov_arcsec: NDArray[np.floating], geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Bring finished colour images of other fields or sizes to the network's.

    Parameters
    ----------
    images : uint8 (N, H, W, B)
        Already stretched, square.
    fov_arcsec : float (N,)
        Field of view of each image.
    geometry : Geometry
        The target.

    Returns
    -------
    images : uint8 (N, S, S, B)
    flags : int32 (N,)
        RESAMPLED where pixels changed, PARTIAL_FIELD where the field was smaller and its edges are reflected.
    """
    size, side = geometry.size_pix, images.shape[1]
    flags = np.zeros(len(images), np.int32)
    fields = [float(fov) for fov in fov_arcsec]
    other = [row for row, fov in enumerate(fields) if side != size or not same_scale(fov, geometry.fov_arcsec)]
    out = images.copy() if side == size else np.empty((len(images), size, size, images.shape[3]), np.uint8)
    if not other:
        return out, flags
    with _one_blas_thread():
        for number in other:
            image, fov = images[number], fields[number]
            pitch = geometry.fov_arcsec / fov * side / size
            count = int(np.ceil(size * pitch)) + 3
            first = int(np.floor(side / 2 - size * pitch / 2)) - 1
            index = _reflect(np.arange(first, first + count), side)
            weights = resampling_weights(side / 2, pitch, size, first, count)
            patch = np.moveaxis(image, -1, 0)[:, index][:, :, index].astype(np.float64)
            out[number] = np.moveaxis(np.rint(weights @ patch @ weights.T), 0, -1).astype(np.uint8)
            flags[number] |= Flag.RESAMPLED.bit
            if fov < geometry.fov_arcsec * (1 - SCALE_TOLERANCE):
                flags[number] |= Flag.PARTIAL_FIELD.bit
    return out, flags
