"""SPREAD_MODEL: is a source wider than the PSF? After Desai et al. (2012). Arrays in, arrays out; no Ray, no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

MOFFAT_BETA = 3.5
HALF_LIGHT_PER_FWHM = 0.604
"""Half-light radius of a Moffat profile of beta 3.5, in units of its FWHM."""
EXPONENTIAL_SCALE_PER_FWHM = 1 / 16
"""Scale length of the exponential disc that G is blurred with (Desai et al. 2012, section 3.3)."""
PHASES = 8
"""Templates are sampled at this many sub-pixel positions an axis."""
MIN_STARS = 3
_CHUNK = 2000


@dataclass(frozen=True)
class Templates:
    """PSF `phi` and blurred PSF `g`, each float64 (PHASES, PHASES, S, S), by sub-pixel row and column."""

    phi: F64
    g: F64

    @property
    def half(self) -> int:
        return int(self.phi.shape[-1] // 2)


def seeing_from_stars(half_light_pix: F64, signal_to_noise: F64, clean: NDArray[np.bool_]) -> float:
    """FWHM of the PSF in pixels: the sharpest crowding of half-light radii among bright clean sources.

    Stars share one radius, galaxies do not: of all windows of 8 % width the fullest is theirs. NaN with fewer than
    three sources of S/N > 30.

    Parameters
    ----------
    half_light_pix, signal_to_noise : float64 (N,)
        FLUX_RADIUS and S/N in one band.
    clean : bool (N,)
        Neither blended, saturated nor truncated.
    """
    good = clean & (signal_to_noise > 30) & np.isfinite(half_light_pix) & (half_light_pix > 0.5)
    radii = np.sort(half_light_pix[good])
    if len(radii) < MIN_STARS:
        return float("nan")
    members = np.searchsorted(radii, radii * 1.08, side="right") - np.arange(len(radii))
    start = int(np.argmax(members))
    return float(np.median(radii[start : start + members[start]])) / HALF_LIGHT_PER_FWHM


def templates(fwhm_pix: float) -> Templates:
    """Normalised Moffat PSF and the same convolved with a circular exponential of scale FWHM/16.

    The convolution is a product in Fourier space: the exponential's transform is (1 + (2 pi k h)^2)^-3/2.
    """
    half = int(np.ceil(2 * fwhm_pix)) + 1
    side = 2 * half + 3
    fine = (np.arange(side * PHASES) - side * PHASES // 2) / PHASES
    width = 0.5 * fwhm_pix / np.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
    psf = (1 + (fine[None, :] ** 2 + fine[:, None] ** 2) / width**2) ** -MOFFAT_BETA
    psf *= PHASES**2 / psf.sum()
    k = np.hypot(np.fft.rfftfreq(len(fine), 1 / PHASES)[None, :], np.fft.fftfreq(len(fine), 1 / PHASES)[:, None])
    scale = EXPONENTIAL_SCALE_PER_FWHM * fwhm_pix
    transform = (1 + (2 * np.pi * k * scale) ** 2) ** -1.5
    blurred = np.fft.irfft2(np.fft.rfft2(psf) * transform, s=psf.shape)
    return Templates(_phases(psf, half), _phases(blurred, half))


def _phases(fine: F64, half: int) -> F64:
    """Native-pixel stamps for each sub-pixel shift in [-0.5, 0.5) of the source from the stamp's centre."""
    centre = len(fine) // 2
    steps = np.arange(-half, half + 1) * PHASES
    stamps = np.empty((PHASES, PHASES, 2 * half + 1, 2 * half + 1))
    for row in range(PHASES):
        for column in range(PHASES):
            rows, columns = centre + steps - (row - PHASES // 2), centre + steps - (column - PHASES // 2)
            stamps[row, column] = fine[np.ix_(rows, columns)]
    return stamps


def spread_model(
    flux: NDArray[np.float32], valid: NDArray[np.bool_], x: F64, y: F64, fwhm_pix: float, sigma: float
) -> tuple[F64, F64]:
    """SPREAD_MODEL and its error (Desai et al. 2012, equations 2 and 3), weights 1/sigma^2 on valid pixels.

    Parameters
    ----------
    flux : float32 (H, W)
        One band, sky subtracted.
    valid : bool (H, W)
        False pixels have weight 0.
    x, y : float64 (N,)
        Positions, 0-based pixels.
    fwhm_pix : float
        Seeing; NaN gives NaN.
    sigma : float
        Noise of a pixel, in the unit of `flux`.

    Returns
    -------
    spread, error : float64 (N,)
        NaN where no PSF-weighted flux was found.
    """
    spread, error = np.full(len(x), np.nan), np.full(len(x), np.nan)
    if not np.isfinite(fwhm_pix):
        return spread, error
    shapes = templates(fwhm_pix)
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        spread[part], error[part] = _spread(flux, valid, x[part], y[part], shapes, sigma)
    return spread, error


def _spread(
    flux: NDArray[np.float32], valid: NDArray[np.bool_], x: F64, y: F64, shapes: Templates, sigma: float
) -> tuple[F64, F64]:
    columns, rows = np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int)
    phase_x = np.clip(np.rint((x - columns) * PHASES).astype(int) + PHASES // 2, 0, PHASES - 1)
    phase_y = np.clip(np.rint((y - rows) * PHASES).astype(int) + PHASES // 2, 0, PHASES - 1)
    offsets = np.arange(-shapes.half, shapes.half + 1)
    where = (rows[:, None, None] + offsets[:, None], columns[:, None, None] + offsets[None, :])
    inside = [(index >= 0) & (index < size) for index, size in zip(where, flux.shape, strict=True)]
    nearest = tuple(np.clip(index, 0, size - 1) for index, size in zip(where, flux.shape, strict=True))
    counts = valid[nearest] & inside[0] & inside[1]
    pixels, weight = np.where(counts, flux[nearest], 0).astype(np.float64), counts.astype(np.float64)
    phi, g = shapes.phi[phase_y, phase_x], shapes.g[phase_y, phase_x]

    def dot(a: F64, b: F64) -> F64:
        return np.asarray(np.einsum("nij,nij,nij->n", a, weight, b))

    phi_p, g_p, phi_phi, g_phi, g_g = (
        dot(phi, pixels),
        dot(g, pixels),
        dot(phi, phi),
        dot(g, phi),
        dot(g, g),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = g_p / phi_p - g_phi / phi_phi
        variance = g_g * phi_p**2 + phi_phi * g_p**2 - 2 * g_phi * g_p * phi_p
        error = sigma * np.sqrt(np.maximum(variance, 0)) / phi_p**2
    found = (phi_p > 0) & (phi_phi > 0)
    return np.where(found, spread, np.nan), np.where(found, error, np.nan)
