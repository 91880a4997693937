"""A sky tile: FITS bands in, flux in nanomaggies with its masks and WCS out. No Ray, no torch.

Reads plain and tile-compressed (fpack) FITS, one file a band or all bands in one (cube or HDUs), with or without
weight and mask HDUs, from disk or S3.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.fits_files import FitsFile, fits_errors
from deepshadows.sky.tile_rows import BandReader, Pixels, TileRows

NANOMAGGY_ZERO_POINT = 22.5
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

    @property
    def rows_at_once(self) -> int:
        return self.shape[0] + self.shape[0] % 2

    def rows(self, first: int, last: int) -> Tile:
        """All rows are at hand."""
        return self

    def pixels(self, rows: slice, columns: slice) -> Pixels:
        """A rectangle of the tile."""
        at = slice(None), rows, columns
        return Pixels(self.flux[at], self.valid[at], self.saturated[at])


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


def open_tile(files: TileFiles, bands: Sequence[str]) -> TileRows:
    """A tile whose rows are read when they are asked for.

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
        first = files.bands[bands[0]]
        for band in bands[1:]:
            _check_same_grid(files.tile_id, bands[0], first, band, files.bands[band])
        sources = [files.bands[band] for band in bands]
        opened = {source.url: FitsFile(source.url, source.size_bytes) for source in sources}
        far = storage.is_s3(first.url)
        with ThreadPoolExecutor(len(bands) if far else 1, thread_name_prefix="headers") as pool:
            readers = list(pool.map(lambda source: _band_reader(opened[source.url], source), sources))
        wcs = celestial_wcs(fits.Header.fromstring(first.wcs_header), first.url)
        return TileRows(
            tile_id=files.tile_id,
            bands=tuple(bands),
            shape=first.shape,
            wcs=wcs,
            pixel_scale_arcsec=pixel_scale_arcsec(wcs),
            far=far,
            readers=tuple(readers),
        )


def read_tile(files: TileFiles, bands: Sequence[str]) -> Tile:
    """All pixels of a tile; see `open_tile` for what is checked."""
    opened = open_tile(files, bands)
    height, width = opened.shape
    flux, valid, saturated = opened.rows(0, height).pixels(slice(0, height), slice(0, width))
    return Tile(
        tile_id=opened.tile_id,
        bands=opened.bands,
        flux=flux,
        valid=np.ones(flux.shape, bool) if valid is None else valid,
        saturated=np.zeros(flux.shape, bool) if saturated is None else saturated,
        wcs=opened.wcs,
        pixel_scale_arcsec=opened.pixel_scale_arcsec,
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


def _band_reader(file: FitsFile, source: BandSource) -> BandReader:
    if storage.stat(source.url).etag != source.etag:
        raise InputError(f"{source.url}: changed since the run was planned")
    science, weight, mask = file.images(
        [source.science_hdu, source.weight_hdu, source.mask_hdu], source.shape, source.plane
    )
    assert science is not None
    header = science.header
    bad_bits, saturated_bits = _mask_bits(mask.header) if mask is not None else (0, 0)
    softening = _number(header, "BSOFTEN")
    return BandReader(
        science=science,
        weight=weight,
        mask=mask,
        factor=np.float32(10 ** (0.4 * (NANOMAGGY_ZERO_POINT - source.zero_point))),
        zero_is_missing=not _rounded(header),
        saturation=_number(header, "SATURATE"),
        bad_bits=bad_bits,
        saturated_bits=saturated_bits,
        asinh=(_number(header, "BOFFSET"), softening) if softening > 0 else None,
    )


def _rounded(header: fits.Header) -> bool:
    """Whether floating-point pixels were rounded to a grid through zero: quantised without dithering.

    astropy's and fpack's lossy compression without dithering gives 2 % of sky pixels the value 0.0; elsewhere an exact
    zero says that nothing was observed there (FITS standard 4.0, section 10.2).
    """
    columns = [str(header[key]).strip() for key in header if key.startswith("TTYPE")]
    return bool(header.get("ZIMAGE")) and header.get("ZQUANTIZ", "NO_DITHER") == "NO_DITHER" and "ZSCALE" in columns


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
