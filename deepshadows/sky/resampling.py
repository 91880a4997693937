"""Cut-outs of other pixel scales: area-weighted when shrinking, linear when enlarging. No I/O, no torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from deepshadows.schema import Flag
from deepshadows.sky.binning import Look, reflect
from deepshadows.sky.tile_rows import Pixels, Source, each_window

_ONE_LIMIT = threading.Lock()
"""The number of BLAS threads belongs to the process: whoever changes it must be alone in putting it back."""


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """For small products: in two threads they took 7 times the CPU."""
    with _ONE_LIMIT, threadpool_limits(1, "blas"):
        yield


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


def resampled_cutouts(
    source: Source,
    x_edge: NDArray[np.float64],
    y_edge: NDArray[np.float64],
    size_pix: int,
    pitch_arcsec: float,
    look: Look,
    threads: int = 1,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images uint8 (N, S, S, B), north up, and flags int32 (N,) around positions inside the tile.

    Parameters
    ----------
    source : Source
        The tile.
    x_edge, y_edge : float64 (N,)
        Centres in pixels, counted from the outer edge of pixel 0.
    size_pix, pitch_arcsec
        Side of a cut-out, and what one of its pixels spans.
    look : Look
        What becomes of a pixel.
    threads : int
        Groups of fields that are read and resampled at one time.
    """
    height, width = source.shape
    pitch = pitch_arcsec / source.pixel_scale_arcsec
    per_reference_pixel = np.float32((look.stretch.pixel_scale_arcsec / source.pixel_scale_arcsec) ** 2)
    steps = np.arange(int(np.ceil(size_pix * pitch)) + 3)
    half = size_pix * pitch / 2
    left, top = ((np.floor(centre - half) - 1).astype(np.int64) for centre in (x_edge, y_edge))
    rows, columns = reflect(top[:, None] + steps, height), reflect(left[:, None] + steps, width)
    partial = np.minimum.reduce([x_edge, y_edge, width - x_edge, height - y_edge]) < half
    spans = np.stack([rows.min(1), rows.max(1) + 1, columns.min(1), columns.max(1) + 1], axis=1)
    reflected = np.any(np.diff(spans)[:, ::2] < len(steps), axis=1)
    flags = (np.where(partial, Flag.PARTIAL_FIELD.bit, 0) | Flag.RESAMPLED.bit).astype(np.int32)
    images = np.empty((len(x_edge), size_pix, size_pix, len(look.bands)), np.uint8)

    def work(number: int, at_hand: Pixels) -> None:
        patch: Any = ...
        if reflected[number]:
            channels = np.arange(len(look.bands))
            patch = np.ix_(channels, rows[number] - spans[number, 0], columns[number] - spans[number, 2])
        over_y = resampling_weights(y_edge[number], pitch, size_pix, int(top[number]), len(steps))
        over_x = resampling_weights(x_edge[number], pitch, size_pix, int(left[number]), len(steps))
        value = over_y @ at_hand.flux[patch].astype(np.float64) @ over_x.T
        weight = np.outer(over_y.sum(1), over_x.sum(1))[None]
        if at_hand.valid is not None and not (valid := at_hand.valid[patch]).all():
            flags[number] |= Flag.SOME_MASKED.bit
            weight = over_y @ valid.astype(np.float64) @ over_x.T
        mean = np.where(weight > 1e-6, value / np.maximum(weight, 1e-6), 0).astype(np.float32)
        images[number] = look.turned(look.stretch.apply(np.moveaxis(mean * per_reference_pixel, 0, -1), look.bands))
        if not (weight > 1e-6).any((1, 2)).all():
            flags[number] |= Flag.ALL_MASKED.bit
        if at_hand.saturated is not None and at_hand.saturated[patch].any():
            flags[number] |= Flag.SATURATED.bit

    with one_blas_thread():
        each_window(source, spans, work, threads)
    return images, flags
