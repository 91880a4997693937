"""Positions on a tile in; network images and flags out. numpy only: no I/O, no Ray, no torch.

Images are (row, column, channel), north up and east left, channels R, G, B = z, r, g. Tiles within 1 % of 0.262"/px
are binned 2x2 on a grid anchored at tile pixel 0 (mean of the valid pixels), so a cut-out's pixels do not depend on
how many others are cut; all other scales are resampled, area-weighted when shrinking and linear when enlarging. Flux is
brought to the pixel that the stretch is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepshadows.schema import Flag
from deepshadows.sky.binning import BinnedCutouts, Look, reflect
from deepshadows.sky.resampling import one_blas_thread, resampled_cutouts, resampling_weights
from deepshadows.sky.stretch import Stretch
from deepshadows.sky.tile_rows import Source

NATIVE_SCALE_ARCSEC = 0.262
SCALE_TOLERANCE = 0.01
METHOD = "bin2-mean or area/linear, north up, east left, version 1"
"""Recorded with every run: another method gives other pixels."""


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


def cut(tile: Source, ra: NDArray[np.float64], dec: NDArray[np.float64], geometry: Geometry) -> Stack:
    """Cut the field around each position; see `cut_parts`."""
    return next(cut_parts(tile, ra, dec, geometry, rows=max(len(ra), 1)))


def cut_parts(
    tile: Source,
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    geometry: Geometry,
    *,
    rows: int,
    threads: int = 1,
) -> Iterator[Stack]:
    """Cut the field around each position, a part of the positions at a time; the tile is read once.

    Parameters
    ----------
    tile : Source
        Holds `geometry.bands`, in that order.
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    geometry : Geometry
        Side, field, bands and stretch of the network.
    rows : int
        Most positions of a part.
    threads : int
        Parts of the tile that are read and binned at one time.

    Yields
    ------
    Stack
        A field that reaches over the tile's edge is edge-reflected (PARTIAL_FIELD); masked pixels are blank sky
        (SOME_MASKED, ALL_MASKED); a position off the tile is OFF_TILE, its image blank. One empty stack of none.

    Raises
    ------
    InputError
        Rows of the tile are damaged.
    """
    if tile.bands != geometry.bands:
        raise ValueError(f"tile has bands {tile.bands}, the network takes {geometry.bands}")
    x, y = tile.wcs.all_world2pix(ra, dec, 0, quiet=True, adaptive=True) if len(ra) else (np.empty(0), np.empty(0))
    height, width = tile.shape
    inside = np.isfinite(x) & np.isfinite(y)
    inside &= (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    edges = x[inside] + 0.5, y[inside] + 0.5
    matrix = tile.wcs.pixel_scale_matrix  # row 0 is north and column 0 east, as in pictures of the sky; rotations stay
    look = Look(geometry.stretch, geometry.bands, flip_rows=matrix[1, 1] > 0, flip_columns=matrix[0, 0] > 0)
    take = _cutter(tile, *edges, geometry, look, threads) if inside.any() else None
    size = geometry.size_pix
    before = np.concatenate([[0], np.cumsum(inside)])
    for start in range(0, max(len(ra), 1), rows):
        part = slice(start, min(start + rows, len(ra)))
        among = slice(int(before[part.start]), int(before[part.stop]))
        if take is not None and inside[part].all():
            images, flags = take(among)
        else:
            images = np.zeros((part.stop - part.start, size, size, len(geometry.bands)), np.uint8)
            flags = np.full(len(images), Flag.OFF_TILE.bit, np.int32)
            if take is not None:
                images[inside[part]], flags[inside[part]] = take(among)
        images[(flags & (Flag.OFF_TILE.bit | Flag.ALL_MASKED.bit)) != 0] = 0
        yield Stack(images, flags)


def _cutter(
    tile: Source,
    x_edge: NDArray[np.float64],
    y_edge: NDArray[np.float64],
    geometry: Geometry,
    look: Look,
    threads: int,
) -> Callable[[slice], tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """What gives images and flags of some of the positions, all inside the tile."""
    if is_native(tile.pixel_scale_arcsec, geometry):
        if not same_scale(tile.pixel_scale_arcsec, look.stretch.pixel_scale_arcsec):
            look = replace(look, stretch=look.stretch.of_pixels(tile.pixel_scale_arcsec))
        return BinnedCutouts(tile, x_edge, y_edge, geometry.size_pix, look, threads).take
    images, flags = resampled_cutouts(tile, x_edge, y_edge, geometry.size_pix, geometry.pitch_arcsec, look, threads)
    return lambda part: (images[part], flags[part])


def is_native(pixel_scale_arcsec: float, geometry: Geometry) -> bool:
    """Whether 2x2 binning brings this scale to the network's, within 1 %."""
    binned = same_scale(pixel_scale_arcsec, geometry.pitch_arcsec / 2, 2 * SCALE_TOLERANCE)
    return binned and same_scale(pixel_scale_arcsec, NATIVE_SCALE_ARCSEC)


def same_scale(one: float, other: float, tolerance: float = SCALE_TOLERANCE) -> bool:
    """Whether two pixel scales or fields are so alike, within 1 %, that nothing is resampled for the difference."""
    return abs(one / other - 1) <= tolerance


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
    with one_blas_thread():
        for number in other:
            image, fov = images[number], fields[number]
            pitch = geometry.fov_arcsec / fov * side / size
            count = int(np.ceil(size * pitch)) + 3
            first = int(np.floor(side / 2 - size * pitch / 2)) - 1
            index = reflect(np.arange(first, first + count), side)
            weights = resampling_weights(side / 2, pitch, size, first, count)
            patch = np.moveaxis(image, -1, 0)[:, index][:, :, index].astype(np.float64)
            out[number] = np.moveaxis(np.rint(weights @ patch @ weights.T), 0, -1).astype(np.uint8)
            flags[number] |= Flag.RESAMPLED.bit
            if fov < geometry.fov_arcsec * (1 - SCALE_TOLERANCE):
                flags[number] |= Flag.PARTIAL_FIELD.bit
    return out, flags
