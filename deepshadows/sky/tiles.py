"""A sky tile: FITS bands in, flux in nanomaggies with its masks and WCS out. No Ray, no torch.

Reads plain and tile-compressed (fpack) FITS, one file a band or all bands in one (cube or HDUs), with or without
weight and mask HDUs, from disk or S3.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, StorageError

NANOMAGGY_ZERO_POINT = 22.5
MAX_TILE_PIXELS = 40_000 * 40_000
"""A header that declares more is not believed."""
BAD_PLANES = ("BAD", "NO_DATA", "CR", "EDGE", "SUSPECT", "UNMASKEDNAN")
"""Planes of LSST and HSC masks that make a pixel useless."""
MASK_BITS = 63
SCALE_RANGE_ARCSEC = (0.02, 10.0)
"""Pixel scales outside are a degenerate WCS."""


@dataclass(frozen=True, kw_only=True)
class BandSource:
    """Where one band of a tile lies: object, HDUs (science, weight, mask) and plane of a cube."""

    url: str
    etag: str
    size_bytes: int
    science_hdu: int
    weight_hdu: int | None = None
    mask_hdu: int | None = None
    plane: int | None = None
    shape: tuple[int, int]
    zero_point: float
    wcs_header: str


@dataclass(frozen=True)
class TileFiles:
    """One tile of the index: where its bands are, and why files that seem to be its own are not among them."""

    tile_id: str
    bands: Mapping[str, BandSource] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def reference(self) -> BandSource:
        """The band whose WCS and shape place detections: the first by name."""
        return self.bands[min(self.bands)]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Pixels of a tile.

    Attributes
    ----------
    flux : float32 (B, H, W)
        Nanomaggies per pixel; 0 where not valid.
    valid : bool (B, H, W)
        False where a pixel is NaN, exactly zero in floating-point data (never observed), of zero weight, or
        marked bad in the mask.
    saturated : bool (B, H, W)
        At or above the header's SATURATE, or so marked in the mask.
    """

    tile_id: str
    bands: tuple[str, ...]
    flux: NDArray[np.float32]
    valid: NDArray[np.bool_]
    saturated: NDArray[np.bool_]
    wcs: WCS
    pixel_scale_arcsec: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.flux.shape[1], self.flux.shape[2]


def celestial_wcs(header: fits.Header, where: str) -> WCS:
    """The celestial WCS of a header; a missing or degenerate one is an `InputError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        try:
            wcs = WCS(header).celestial
        except Exception as error:  # astropy.wcs raises a family of C-level types without a common base
            raise InputError(f"{where}: the WCS cannot be read: {error}") from error
    if not wcs.has_celestial:
        raise InputError(f"{where}: no celestial WCS in the header; add CTYPE, CRVAL, CRPIX and CD cards")
    scale = pixel_scale_arcsec(wcs)
    if not np.isfinite(scale) or not SCALE_RANGE_ARCSEC[0] <= scale <= SCALE_RANGE_ARCSEC[1]:
        raise InputError(f'{where}: the WCS is degenerate: {scale:.4g}"/px')
    return wcs


def pixel_scale_arcsec(wcs: WCS) -> float:
    """Geometric mean of the two pixel scales."""
    scales = np.abs(proj_plane_pixel_scales(wcs)) * 3600
    return float(np.sqrt(scales[0] * scales[1]))


@contextlib.contextmanager
def fits_errors(where: str) -> Iterator[None]:
    """Turn what damaged headers make astropy raise, which has no common base, into an `InputError`.

    A lack of memory or of the system's own is no damage: it stops the run.
    """
    try:
        yield
    except (Failure, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise StorageError(f"{where}: {error}") from error
        raise InputError(f"{where}: damaged FITS file: {error}") from error
    except Exception as error:
        raise InputError(f"{where}: damaged FITS file: {type(error).__name__}: {error}") from error


def open_fits(source: Any, where: str, **options: Any) -> fits.HDUList:
    """An HDU list from a file-like object; what is not FITS is an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fits.open(source, memmap=False, lazy_load_hdus=True, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: not a FITS file: {error}") from error


def read_tile(files: TileFiles, bands: Sequence[str]) -> Tile:
    """Read the bands of one tile.

    Parameters
    ----------
    files : TileFiles
        The tile, from the index.
    bands : sequence of str
        Bands to read, in the order of the result's first axis.

    Raises
    ------
    InputError
        A band is missing, truncated, changed since the index was made, or differs from the first in shape or WCS; both
        are named.
    """
    missing = [band for band in bands if band not in files.bands]
    if missing:
        raise InputError(f"tile {files.tile_id}: band {', '.join(missing)} missing; has {', '.join(files.bands)}")
    with fits_errors(f"tile {files.tile_id}"):
        return _read_bands(files, bands)


def _read_bands(files: TileFiles, bands: Sequence[str]) -> Tile:
    first = files.bands[bands[0]]
    for band in bands[1:]:
        _check_same_grid(files.tile_id, bands[0], first, band, files.bands[band])
    opened: dict[str, _Opened] = {}
    planes = []
    for band in bands:
        source = files.bands[band]
        if source.url not in opened:
            opened[source.url] = _open_object(source)
        planes.append(_read_band(opened[source.url], source))
    wcs = celestial_wcs(fits.Header.fromstring(first.wcs_header), first.url)
    flux, valid, saturated = (np.stack(arrays) for arrays in zip(*planes, strict=True))
    return Tile(
        tile_id=files.tile_id,
        bands=tuple(bands),
        flux=flux,
        valid=valid,
        saturated=saturated,
        wcs=wcs,
        pixel_scale_arcsec=pixel_scale_arcsec(wcs),
    )


def _check_same_grid(tile_id: str, band_a: str, a: BandSource, band_b: str, b: BandSource) -> None:
    if a.shape != b.shape:
        raise InputError(
            f"tile {tile_id}: bands differ in shape: {a.url} ({band_a}) is {a.shape}, {b.url} ({band_b}) is {b.shape}"
        )
    corners = np.array([[0, 0], [0, a.shape[0]], [a.shape[1], 0], [a.shape[1], a.shape[0]]], dtype=float)
    wcs_a = celestial_wcs(fits.Header.fromstring(a.wcs_header), a.url)
    wcs_b = celestial_wcs(fits.Header.fromstring(b.wcs_header), b.url)
    offset_pix = wcs_b.all_world2pix(wcs_a.all_pix2world(corners, 0), 0, quiet=True) - corners
    if not np.all(np.abs(offset_pix) < 0.5):
        raise InputError(
            f"tile {tile_id}: bands differ in WCS by up to {np.nanmax(np.abs(offset_pix)):.2f} px: "
            f"{a.url} ({band_a}) and {b.url} ({band_b})"
        )


@dataclass(frozen=True)
class _Opened:
    """A FITS object in memory; in the HDUs of `rounded` exact zeros are ordinary values."""

    hdus: fits.HDUList
    rounded: frozenset[int]


def _open_object(source: BandSource) -> _Opened:
    if storage.stat(source.url).etag != source.etag:
        raise InputError(f"{source.url}: changed since the run was planned")
    data = storage.read(source.url)
    return _Opened(open_fits(io.BytesIO(data), source.url), _rounded(data, source.url))


def _rounded(data: bytes, where: str) -> frozenset[int]:
    """HDUs whose floating-point pixels were rounded to a grid through zero: quantised without dithering.

    astropy's and fpack's lossy compression without dithering gives 2 % of sky pixels the value 0.0; elsewhere an exact
    zero says that nothing was observed there (FITS standard 4.0, section 10.2).
    """
    with open_fits(io.BytesIO(data), where, disable_image_compression=True) as tables:
        return frozenset(
            number
            for number, hdu in enumerate(tables)
            if hdu.header.get("ZIMAGE")
            and hdu.header.get("ZQUANTIZ", "NO_DITHER") == "NO_DITHER"
            and "ZSCALE" in hdu.columns.names
        )


def _read_band(opened: _Opened, source: BandSource) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    hdus = opened.hdus
    header = hdus[source.science_hdu].header
    science = _pixels(hdus, source.science_hdu, source)
    floating = science.dtype.kind == "f"
    data = science.astype(np.float32)
    valid = np.isfinite(data)
    if floating and source.science_hdu not in opened.rounded:
        valid &= data != 0
    if source.weight_hdu is not None:
        valid &= _pixels(hdus, source.weight_hdu, source) > 0
    saturated = np.zeros(data.shape, dtype=bool)
    if (limit := _number(header, "SATURATE")) > 0:
        saturated = valid & (data >= limit)
    if source.mask_hdu is not None:
        mask = _pixels(hdus, source.mask_hdu, source).astype(np.int64)
        bad_bits, saturated_bits = _mask_bits(hdus[source.mask_hdu].header)
        saturated |= (mask & saturated_bits) != 0
        valid &= (mask & bad_bits) == 0
    factor = np.float32(10 ** (0.4 * (NANOMAGGY_ZERO_POINT - source.zero_point)))
    return np.where(valid, data * factor, np.float32(0)), valid, saturated & valid


def _number(header: fits.Header, key: str) -> float:
    """A numeric keyword, 0 where it is missing or text."""
    value = header.get(key, 0)
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else 0.0


def _mask_bits(header: fits.Header) -> tuple[int, int]:
    """Bits that make a pixel invalid, and bits that say it is saturated.

    LSST and HSC masks name their planes in MP_* cards, and most of those (DETECTED, ...) say nothing bad of a pixel.
    Elsewhere every bit is bad but SATBIT, a value that our simulated tiles state.
    """
    stated = {key[3:]: int(_number(header, key)) for key in header if key.startswith("MP_")}
    if stated:
        planes = {name: 1 << bit for name, bit in stated.items() if 0 <= bit < MASK_BITS}
        return sum(planes.get(name, 0) for name in BAD_PLANES), planes.get("SAT", 0)
    saturated_bits = int(_number(header, "SATBIT"))
    return ~saturated_bits, saturated_bits


def _pixels(hdus: fits.HDUList, number: int, source: BandSource) -> NDArray[Any]:
    declared = hdus[number].shape  # of a compressed image: as it will be in memory
    if math.prod(declared) > MAX_TILE_PIXELS:
        raise InputError(f"{source.url}: HDU {number} declares {declared} pixels; more than any tile has")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = hdus[number].data
    except MemoryError:
        raise
    except Exception as error:  # astropy and its decompressors raise many types on damaged data
        raise InputError(f"{source.url}: HDU {number} cannot be read, truncated or damaged: {error}") from error
    if data is not None and source.plane is not None and data.ndim == 3:
        data = data[source.plane]
    if data is None or data.shape != source.shape:
        found = None if data is None else data.shape
        raise InputError(f"{source.url}: HDU {number} has shape {found}, expected {source.shape}")
    return np.asarray(data)
