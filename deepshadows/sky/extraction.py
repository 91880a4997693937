"""Finds sources on a tile with sep and measures columns named as SExtractor names them. No Ray, no files.

Detection is on the mean of g, r, i weighted by inverse variance; every band is measured in the ellipse found there.
SExtractor fits models where sep cannot; what stands for each column:

==========================  =====================================================================================
column                      meaning here
==========================  =====================================================================================
object_id                   31 bits of a hash of the tile id, then 32 bits of the running number from 1
tile, ra, dec               ICRS degrees of the centroid
x_image, y_image            centroid in pixels, 0-based (SExtractor: 1-based)
a_image, b_image            second moments along the axes, pixels
theta_image                 angle of the major axis from +x to +y, degrees
mag_auto_{g,r,i,z}          flux in the Kron ellipse (2.5 Kron radii, at least 3.5 a), neighbours masked; AB magnitude
flux_radius_{g,r,i}         radius of half that flux, pixels
mu_max_model_{g,r,i}        central surface brightness: mean in a circle of 1.5 pixels (model: its peak)
mu_eff_model_{g,r,i}        surface brightness at the half-light radius: mean from 0.8 to 1.2 flux radii
mu_mean_model_{g,r,i}       mean within the half-light radius: mag_auto + 2.5 log10(2 pi flux_radius^2)
spread_model_i              Desai et al. 2012 with a Moffat PSF of the tile's seeing (see `spread`)
spreaderr_model_i           its error
flags                       SExtractor's bits: 2 deblended, 4 saturated, 8 truncated, 16 aperture incomplete
==========================  =====================================================================================

Surface brightness is in mag/arcsec2. A measurement that failed (no flux, band missing, no stars for the seeing) is NaN.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import sep
from numpy.typing import NDArray

from deepshadows.outcomes import InputError
from deepshadows.sky.spread import seeing_from_stars, spread_model
from deepshadows.sky.tiles import NANOMAGGY_ZERO_POINT, Tile

F64 = NDArray[np.float64]

MAGNITUDE_BANDS = ("g", "r", "i", "z")
FEATURE_BANDS = ("g", "r", "i")
BACKGROUND_MESH_PIX = 256
"""As in the DES coadds: smaller meshes swallow the largest LSBGs."""
DEBLEND_CONTRAST = 0.005
PIXEL_STACK = 2_000_000
SUB_OBJECTS = 8192

DEBLENDED, SATURATED, TRUNCATED, INCOMPLETE = 2, 4, 8, 16

DETECTION_SCHEMA = pa.schema(
    [
        ("object_id", pa.int64()),
        ("tile", pa.string()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        *((name, pa.float32()) for name in ("x_image", "y_image", "a_image", "b_image", "theta_image")),
        *((f"mag_auto_{band}", pa.float32()) for band in MAGNITUDE_BANDS),
        *((f"flux_radius_{band}", pa.float32()) for band in FEATURE_BANDS),
        *((f"mu_{what}_model_{band}", pa.float32()) for what in ("max", "eff", "mean") for band in FEATURE_BANDS),
        ("spread_model_i", pa.float32()),
        ("spreaderr_model_i", pa.float32()),
        ("flags", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Plane:
    """One band, or the detection image: sky subtracted, with its noise and good pixels."""

    flux: NDArray[np.float32]
    valid: NDArray[np.bool_]
    sigma: float

    @property
    def bad(self) -> NDArray[np.bool_] | None:
        """sep's mask; None where all pixels are good, which is twice as fast."""
        return None if self.valid.all() else ~self.valid


@dataclass(frozen=True)
class Sources:
    """What sep found: its structured array (N,), the map of numbers (H, W), and the Kron scale (N,)."""

    catalogue: NDArray[Any]
    segments: NDArray[np.int32]
    kron_scale: F64
    incomplete: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def ellipses(self) -> tuple[F64, F64, F64, F64, F64]:
        """x, y, a, b in pixels, theta in radians within sep's limits."""
        c = self.catalogue
        theta = np.clip(c["theta"], -np.pi / 2, np.pi / 2)
        return c["x"], c["y"], np.maximum(c["a"], 0.3), np.clip(c["b"], 0.3, np.maximum(c["a"], 0.3)), theta

    @property
    def own(self) -> dict[str, Any]:
        """Arguments that make sep mask the pixels of other sources."""
        return {"segmap": self.segments, "seg_id": np.arange(1, len(self) + 1, dtype=np.int32)}


def detect(
    tile: Tile, *, threshold_sigma: float = 1.5, min_area_pix: int = 20, seeing_arcsec: float | None = None
) -> pa.Table:
    """Sources of one tile, in the order sep finds them.

    Parameters
    ----------
    tile : Tile
        Any of the bands g, r, i, z; at least one of g, r, i.
    threshold_sigma : float
        Of a pixel of the filtered detection image.
    min_area_pix : int
        Connected pixels above the threshold.
    seeing_arcsec : float, optional
        FWHM of the PSF in i; without it, that of the tile's stars.

    Returns
    -------
    pa.Table
        Columns of `DETECTION_SCHEMA`.

    Raises
    ------
    InputError
        No band of g, r, i, no valid pixel, a band without noise, or a field too crowded for sep's buffers.
    """
    planes = {band: _sky_subtracted(tile, number) for number, band in enumerate(tile.bands) if tile.valid[number].any()}
    usable = [planes[band] for band in FEATURE_BANDS if band in planes]
    if not usable:
        raise InputError(f"tile {tile.tile_id}: no valid pixel in g, r or i; nothing can be detected")
    sources = _find(_combined(usable), tile.tile_id, threshold_sigma, min_area_pix)
    saturated = np.bincount(sources.segments[tile.saturated.any(0)].ravel(), minlength=len(sources) + 1)[1:] > 0
    columns = _places(tile, sources) | {"flags": _flags(sources, saturated)}
    fluxes = {band: _auto_flux(planes[band], sources) for band in MAGNITUDE_BANDS if band in planes}
    for band, flux in fluxes.items():
        columns[f"mag_auto_{band}"] = _mag(flux)
        if band in FEATURE_BANDS:
            columns |= _features(planes[band], sources, flux, band, tile.pixel_scale_arcsec)
    if "i" in fluxes:
        fwhm_pix = None if seeing_arcsec is None else seeing_arcsec / tile.pixel_scale_arcsec
        columns |= _spread(planes["i"], sources, fluxes["i"], columns, fwhm_pix)
    nothing = np.full(len(sources), np.nan)
    arrays = [_column(columns.get(field.name, nothing), field.type) for field in DETECTION_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=DETECTION_SCHEMA)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, type=kind)
    return pa.array(np.asarray(values).astype(kind.to_pandas_dtype()), type=kind)


def _sky_subtracted(tile: Tile, number: int) -> Plane:
    """One band less its background on a mesh of 256 pixels."""
    flux, valid = np.ascontiguousarray(tile.flux[number]), tile.valid[number]
    mesh = {"bw": min(BACKGROUND_MESH_PIX, flux.shape[1]), "bh": min(BACKGROUND_MESH_PIX, flux.shape[0])}
    sky = sep.Background(flux, mask=None if valid.all() else ~valid, **mesh)
    if sky.globalrms == 1.0:  # what sep says where it finds no spread at all
        raise InputError(f"tile {tile.tile_id}: band {tile.bands[number]} has no noise, its pixels are all alike")
    return Plane(flux - sky.back(dtype=np.float32), valid, float(sky.globalrms))


def _combined(planes: list[Plane]) -> Plane:
    """Mean weighted by inverse variance, scaled to unit noise; a pixel counts where at least one band is valid."""
    weight = np.zeros(planes[0].flux.shape, dtype=np.float32)
    total = np.zeros_like(weight)
    for plane in planes:
        share = plane.valid * np.float32(plane.sigma**-2)
        weight += share
        share *= plane.flux
        total += share
    valid = weight > 0
    total[~valid], weight[~valid] = 0, 1
    total /= np.sqrt(weight, out=weight)
    return Plane(total, valid, 1.0)


def _gaussian_kernel(fwhm_pix: float, side: int) -> NDArray[np.float32]:
    """As SExtractor's gauss_3.0_7x7.conv."""
    offset = np.arange(side) - side // 2
    kernel = np.exp(-4 * np.log(2) * (offset[:, None] ** 2 + offset[None, :] ** 2) / fwhm_pix**2)
    return np.asarray(kernel / kernel.max(), dtype=np.float32)


def _find(plane: Plane, tile_id: str, threshold_sigma: float, min_area_pix: int) -> Sources:
    """Run sep; its buffers are sized for crowded tiles, and their overflow is the tile's fault, not ours."""
    sep.set_extract_pixstack(max(PIXEL_STACK, plane.flux.size // 4))
    sep.set_sub_object_limit(SUB_OBJECTS)
    try:
        catalogue, segments = sep.extract(
            plane.flux,
            threshold_sigma,
            err=plane.sigma,
            mask=plane.bad,
            minarea=min_area_pix,
            filter_kernel=_gaussian_kernel(3.0, 7),
            deblend_nthresh=32,
            deblend_cont=DEBLEND_CONTRAST,
            segmentation_map=True,
        )
    except Exception as error:  # sep raises bare Exception, with SExtractor's messages
        raise InputError(
            f"tile {tile_id}: too crowded for detection at {threshold_sigma} sigma ({error}); raise --threshold-sigma"
        ) from error
    found = Sources(catalogue, segments, np.zeros(len(catalogue)), np.zeros(len(catalogue), dtype=bool))
    if not len(catalogue):
        return found
    kron, kron_flags = sep.kron_radius(plane.flux, *found.ellipses, 6.0, mask=plane.bad, **found.own)
    scale = np.maximum(2.5 * np.nan_to_num(kron), 3.5)
    return Sources(catalogue, segments, scale, (kron_flags & sep.APER_TRUNC) != 0)


def _places(tile: Tile, sources: Sources) -> dict[str, Any]:
    x, y, a, b, theta = sources.ellipses
    ra, dec = tile.wcs.all_pix2world(x, y, 0) if len(sources) else (x, y)
    return {
        "object_id": detection_ids(tile.tile_id, len(sources)),
        "tile": [tile.tile_id] * len(sources),
        "ra": ra % 360.0,
        "dec": dec,
        "x_image": x,
        "y_image": y,
        "a_image": a,
        "b_image": b,
        "theta_image": np.rad2deg(theta),
    }


def detection_ids(tile_id: str, count: int) -> NDArray[np.int64]:
    """Identifiers that are the same in every run, and differ between tiles, shape (count,)."""
    digest = hashlib.blake2b(tile_id.encode(), digest_size=8).digest()
    prefix = np.int64(int.from_bytes(digest, "big") >> 33)
    return (prefix << np.int64(32)) + np.arange(1, count + 1, dtype=np.int64)


def _flags(sources: Sources, saturated: NDArray[np.bool_]) -> NDArray[np.int32]:
    found = sources.catalogue["flag"] if len(sources) else np.zeros(0, dtype=np.int32)
    flags = np.where((found & sep.OBJ_MERGED) != 0, DEBLENDED, 0)
    flags |= np.where((found & sep.OBJ_TRUNC) != 0, TRUNCATED, 0)
    flags |= np.where(saturated, SATURATED, 0)
    flags |= np.where(sources.incomplete, INCOMPLETE, 0)
    return flags.astype(np.int32)


def _auto_flux(plane: Plane, sources: Sources) -> F64:
    """Flux in the Kron ellipse, neighbours masked, shape (N,)."""
    if not len(sources):
        return np.zeros(0)
    flux, _, _ = sep.sum_ellipse(plane.flux, *sources.ellipses, sources.kron_scale, mask=plane.bad, **sources.own)
    return np.asarray(flux)


def _mag(flux: F64, area_arcsec2: F64 | float = 1.0) -> F64:
    """Magnitude, or surface brightness over an area; NaN where the flux is not positive."""
    positive = flux > 0
    ratio = np.where(positive, flux, 1.0) / area_arcsec2
    return np.where(positive, NANOMAGGY_ZERO_POINT - 2.5 * np.log10(ratio), np.nan)


def _features(plane: Plane, sources: Sources, flux: F64, band: str, scale_arcsec: float) -> dict[str, F64]:
    """Half-light radius and surface brightnesses of one band."""
    names = (f"flux_radius_{band}", f"mu_max_model_{band}", f"mu_eff_model_{band}", f"mu_mean_model_{band}")
    if not len(sources):
        return dict.fromkeys(names, np.zeros(0))
    x, y, a, _, _ = sources.ellipses
    good = flux > 0
    options = {"mask": plane.bad, **sources.own}
    radius, _ = sep.flux_radius(
        plane.flux, x, y, sources.kron_scale * a, 0.5, normflux=np.where(good, flux, 1.0), subpix=5, **options
    )
    radius = np.where(good & (radius > 0), radius, np.nan)
    ring_radius = np.nan_to_num(radius, nan=1.0)
    centre, _, _ = sep.sum_circle(plane.flux, x, y, 1.5, **options)
    ring, _, _ = sep.sum_circann(plane.flux, x, y, 0.8 * ring_radius, 1.2 * ring_radius, **options)
    ring_area = np.pi * (1.2**2 - 0.8**2) * (ring_radius * scale_arcsec) ** 2
    values = (
        radius,
        _mag(centre, np.pi * (1.5 * scale_arcsec) ** 2),
        np.where(np.isfinite(radius), _mag(ring, ring_area), np.nan),
        _mag(flux) + 2.5 * np.log10(2 * np.pi * (radius * scale_arcsec) ** 2),
    )
    return dict(zip(names, values, strict=True))


def _spread(
    plane: Plane, sources: Sources, flux: F64, columns: dict[str, Any], fwhm_pix: float | None
) -> dict[str, F64]:
    x, y, _, _, _ = sources.ellipses
    if fwhm_pix is None:
        radius = columns["flux_radius_i"]
        noise = plane.sigma * np.sqrt(np.pi) * 2 * np.nan_to_num(radius, nan=1.0)
        fwhm_pix = seeing_from_stars(radius, flux / noise, columns["flags"] == 0)
    spread, error = spread_model(plane.flux, plane.valid, x, y, fwhm_pix, plane.sigma)
    return {"spread_model_i": spread, "spreaderr_model_i": error}
