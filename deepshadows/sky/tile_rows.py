"""Rows of a tile as stored, turned into flux where they are wanted: nothing else of the tile is in memory.

All that is done to a pixel depends on that pixel alone, so its bits are the same in whatever company it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from deepshadows.sky.fits_files import Image, fits_errors

_FEW_BYTES, _MANY_BYTES = 2 << 20, 16 << 20
"""Of one band's float32 rows read together: a disk's cache is fastest in pieces that stay in the processor's; each
request to a store, and each start of astropy's decoder, takes its time."""
_GROUP_ROWS = 1024
Task = TypeVar("Task")
_PANSTARRS_ASINH = np.float32(2.5 / np.log(10))


class Pixels(NamedTuple):
    """A rectangle of a tile.

    Attributes
    ----------
    flux : float32 (B, H, W)
        Nanomaggies per pixel; 0 where not valid.
    valid : bool (B, H, W), optional
        None where all are.
    saturated : bool (B, H, W), optional
        None where none is.
    """

    flux: NDArray[np.float32]
    valid: NDArray[np.bool_] | None = None
    saturated: NDArray[np.bool_] | None = None


class Rows(Protocol):
    """Some rows of a tile, at hand."""

    def pixels(self, rows: slice, columns: slice) -> Pixels:
        """A rectangle; `rows` count from the first row of the tile."""


class Source(Protocol):
    """A tile that can be cut."""

    @property
    def bands(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def wcs(self) -> WCS: ...
    @property
    def pixel_scale_arcsec(self) -> float: ...
    @property
    def rows_at_once(self) -> int:
        """Rows that are best read together; even."""

    def rows(self, first: int, last: int) -> Rows:
        """Rows `first` to `last`."""


@dataclass(frozen=True, kw_only=True)
class BandReader:
    """One band: its images and what their values mean.

    Attributes
    ----------
    factor : float32
        Nanomaggies of one count.
    zero_is_missing : bool
        An exact zero of a floating-point image says that nothing was observed there.
    saturation : float
        Counts from which a pixel is saturated; 0 for none.
    bad_bits, saturated_bits : int
        Of the mask.
    asinh : tuple of float, optional
        BOFFSET and BSOFTEN of Pan-STARRS stacks, whose pixels are asinh magnitudes of their counts.
    """

    science: Image
    weight: Image | None
    mask: Image | None
    factor: np.float32
    zero_is_missing: bool
    saturation: float
    bad_bits: int
    saturated_bits: int
    asinh: tuple[float, float] | None

    def images(self) -> list[Image | None]:
        return [self.science, self.weight, self.mask]

    def pixels(
        self, science: NDArray[Any], weight: NDArray[Any] | None, mask: NDArray[Any] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
        """Flux, valid and saturated pixels (as `Pixels`, of one band) of stored ones, all (H, W)."""
        data = science.astype(np.float32)
        if self.asinh is not None:
            offset, softening = (np.float32(value) for value in self.asinh)
            data = offset + softening * 2 * np.sinh(data / _PANSTARRS_ASINH)
        good = np.isfinite(data)
        if science.dtype.kind == "f" and self.zero_is_missing:
            good &= data != 0
        if weight is not None:
            good &= weight > 0
        saturated = None
        if self.saturation > 0:
            saturated = data >= np.float32(self.saturation)
        if mask is not None:
            bits = mask.astype(np.int64)
            marked = (bits & self.saturated_bits) != 0
            saturated = marked if saturated is None else saturated | marked
            good &= (bits & self.bad_bits) == 0
        data *= self.factor
        if saturated is not None:
            saturated &= good
            saturated = saturated if saturated.any() else None
        if good.all():
            return data, None, saturated
        return np.where(good, data, np.float32(0)), good, saturated


@dataclass(frozen=True)
class StoredRows:
    """Rows of all bands as stored."""

    readers: tuple[BandReader, ...]
    first: int
    stored: list[list[NDArray[Any] | None]]

    def pixels(self, rows: slice, columns: slice) -> Pixels:
        at = slice(rows.start - self.first, rows.stop - self.first), columns
        flux: NDArray[np.float32] | None = None
        valid: NDArray[np.bool_] | None = None
        saturated: NDArray[np.bool_] | None = None
        for number, (reader, (science, weight, mask)) in enumerate(zip(self.readers, self.stored, strict=True)):
            assert science is not None
            data, good, full = reader.pixels(
                science[at], None if weight is None else weight[at], None if mask is None else mask[at]
            )
            if flux is None:
                flux = np.empty((len(self.readers), *data.shape), np.float32)
            flux[number] = data
            if good is not None:
                valid = np.ones(flux.shape, bool) if valid is None else valid
                valid[number] = good
            if full is not None:
                saturated = np.zeros(flux.shape, bool) if saturated is None else saturated
                saturated[number] = full
        assert flux is not None
        return Pixels(flux, valid, saturated)


@dataclass(frozen=True, kw_only=True)
class TileRows:
    """A tile whose rows are read when they are asked for; a `Source`."""

    tile_id: str
    bands: tuple[str, ...]
    shape: tuple[int, int]
    wcs: WCS
    pixel_scale_arcsec: float
    far: bool
    """On S3, where each request takes its time."""
    readers: tuple[BandReader, ...]

    @property
    def rows_at_once(self) -> int:
        slow = any(image is not None and image.slow_start for reader in self.readers for image in reader.images())
        wanted = _MANY_BYTES if slow or self.far else _FEW_BYTES
        return max(2, wanted // (4 * self.shape[1]) // 2 * 2)

    def rows(self, first: int, last: int) -> StoredRows:
        """Rows `first` to `last` of all bands; an `InputError` where they are damaged."""
        images = [image for reader in self.readers for image in reader.images()]

        def read(image: Image | None) -> NDArray[Any] | None:
            return None if image is None else image.rows(first, last)

        with fits_errors(f"tile {self.tile_id}"):
            if self.far:
                with ThreadPoolExecutor(len(images), thread_name_prefix="bands") as pool:
                    stored = list(pool.map(read, images))
            else:
                stored = [read(image) for image in images]
        return StoredRows(self.readers, first, [stored[start : start + 3] for start in range(0, len(stored), 3)])


def each_window(
    source: Source, spans: NDArray[np.int64], work: Callable[[int, Pixels], None], threads: int = 1
) -> None:
    """Give `work` the pixels of each rectangle and its number; rows that overlap are read together.

    Parameters
    ----------
    source : Source
        The tile.
    spans : int64 (N, 4)
        First and last + 1 row, first and last + 1 column.
    work : callable
        Called in several threads where `threads` is more than 1.
    """

    def group_work(group: list[int]) -> None:
        at_hand = source.rows(int(spans[group, 0].min()), int(spans[group, 1].max()))
        for number in group:
            top, bottom, left, right = spans[number].tolist()
            work(number, at_hand.pixels(slice(top, bottom), slice(left, right)))

    each(group_work, _groups(spans[:, 0], spans[:, 1]), threads)


def _groups(first: NDArray[np.int64], last: NDArray[np.int64]) -> list[list[int]]:
    """Numbers of the intervals that overlap or touch, at most `_GROUP_ROWS` together."""
    groups: list[list[int]] = []
    begin = end = -1
    for number in np.argsort(first, kind="stable").tolist():
        low, high = int(first[number]), int(last[number])
        if groups and low <= end and high - begin <= _GROUP_ROWS:
            groups[-1].append(number)
            end = max(end, high)
        else:
            groups.append([number])
            begin, end = low, high
    return groups


def each(work: Callable[[Task], None], tasks: Sequence[Task], threads: int) -> None:
    """Run `work` on each task; numpy and the decoders of astropy let other threads run meanwhile."""
    if threads == 1 or len(tasks) < 2:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="tile") as pool:
        for done in [pool.submit(work, task) for task in tasks]:
            done.result()
