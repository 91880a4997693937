"""Draws galaxies and stars on a canvas; artifacts are in `artifacts`. Imports no Ray, touches no files.

Faint compact sources (most of a field) are elliptical Moffat profiles computed for all at once in numpy: 40 us each
against 2 ms by convolution. Everything larger is convolved by GalSim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deepshadows.sky.canvas import FAST, MOFFAT_BETA, Canvas, moffat_width
from deepshadows.sky.population import Kind, SkyObject, magnitudes

F64 = NDArray[np.float64]

COMPACT_MAG_R = 21.5
"""Galaxies fainter than this are drawn as elliptical Moffats."""
COMPACT_HALF_PIX = 14


def is_compact(item: SkyObject) -> bool:
    return item.kind is Kind.STAR or (item.kind is Kind.GALAXY and item.mag[1] > COMPACT_MAG_R)


def draw_compact(canvas: Canvas, objects: Sequence[SkyObject]) -> None:
    """Stars and faint galaxies, many at once: seeing and half-light radius added in quadrature."""
    if not objects:
        return
    x = np.array([item.x for item in objects])
    y = np.array([item.y for item in objects])
    size = np.array([item.r_eff_arcsec for item in objects]) / canvas.survey.pixel_scale_arcsec
    axis_ratio = 1 - np.array([item.ellipticity for item in objects])
    angle = np.deg2rad([item.angle_deg for item in objects])
    add_moffats(canvas, x, y, canvas.survey.counts(magnitudes(list(objects))), size, axis_ratio, angle)


def add_moffats(canvas: Canvas, x: F64, y: F64, counts_NB: F64, r_eff_pix: F64, axis_ratio: F64, angle: F64) -> None:
    """Elliptical Moffat profiles of the seeing, widened by `r_eff_pix`; all vectors have shape (N,).

    The half-light diameter of a Moffat of beta 3.5 is 1.26 FWHM; 1.6 r_eff added in quadrature to the FWHM keeps the
    half-light radius of the sum within 5 %.
    """
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    offsets = np.arange(-COMPACT_HALF_PIX, COMPACT_HALF_PIX + 1)
    x_pix, y_pix = np.rint(x).astype(int), np.rint(y).astype(int)
    dx = offsets[None, None, :] - (x - x_pix)[:, None, None]
    dy = offsets[None, :, None] - (y - y_pix)[:, None, None]
    along2, across2 = (dx * cos + dy * sin) ** 2, (dy * cos - dx * sin) ** 2
    height, width = canvas.flux.shape[1:]
    for band, fwhm in enumerate(canvas.fwhm_pix):
        minor = moffat_width(np.sqrt(fwhm**2 + (1.6 * r_eff_pix) ** 2 * axis_ratio))
        major = moffat_width(np.sqrt(fwhm**2 + (1.6 * r_eff_pix) ** 2 / axis_ratio))
        peak = counts_NB[:, band] * (MOFFAT_BETA - 1) / (np.pi * minor * major)
        radius2 = along2 / (major**2)[:, None, None] + across2 / (minor**2)[:, None, None]
        stamps = (peak[:, None, None] * (1 + radius2) ** -MOFFAT_BETA).astype(np.float32)
        for stamp, column, row in zip(stamps, x_pix - COMPACT_HALF_PIX, y_pix - COMPACT_HALF_PIX, strict=True):
            left, bottom = max(column, 0), max(row, 0)
            right, top = min(column + stamp.shape[1], width), min(row + stamp.shape[0], height)
            if left < right and bottom < top:
                part = stamp[bottom - row : top - row, left - column : right - column]
                canvas.flux[band, bottom:top, left:right] += part


def draw_galaxy(canvas: Canvas, item: SkyObject) -> None:
    """An ordinary galaxy: one Sersic profile."""
    canvas.add_profile([(sersic(item), counts(canvas, item))], item.x, item.y, half_size(canvas, item))


def draw_lsbg(canvas: Canvas, item: SkyObject) -> None:
    """A faint disc: Sersic, often lopsided; blue ones with knots of star formation, red ones now and then a nucleus.

    Total magnitudes stay those of the truth row; knots hold 2 to 18 % of the light, a second, shifted disc up to 40 %.
    """
    rng = np.random.default_rng(item.seed)
    light = counts(canvas, item)
    blue = item.mag[0] - item.mag[2] < 0.6
    in_knots = float(rng.uniform(0.02, 0.18)) if blue and rng.random() < 0.7 else 0.0
    lopsided = float(rng.uniform(0.1, 0.4)) if rng.random() < (0.6 if blue else 0.2) else 0.0
    in_nucleus = 0.03 if not blue and rng.random() < 0.25 else 0.0
    parts = [(sersic(item), light * (1 - in_knots - lopsided - in_nucleus))]
    if in_knots:
        parts += knots(rng, item, light * in_knots, count=int(rng.integers(2, 7)), spread=0.7, blueness=0.6)
    if lopsided:
        dx, dy = rng.normal(0, 0.4 * item.r_eff_arcsec, 2)
        second = sersic(item).dilate(float(rng.uniform(0.5, 0.9))).rotate(float(rng.uniform(0, 180)) * galsim.degrees)
        parts.append((second.shift(float(dx), float(dy)), light * lopsided))
    if in_nucleus:
        parts.append((galsim.Gaussian(sigma=0.15, gsparams=FAST), light * in_nucleus))
    canvas.add_profile(parts, item.x, item.y, half_size(canvas, item))


def knots(
    rng: np.random.Generator, item: SkyObject, light_B: F64, *, count: int, spread: float, blueness: float
) -> list[tuple[Any, F64]]:
    """Small round clumps scattered over a galaxy within about `spread` half-light radii.

    `blueness` 1 makes them 0.2 mag bluer in g - z than the galaxy is.
    """
    weights = rng.dirichlet(np.ones(count))
    places = rng.normal(0, spread * item.r_eff_arcsec, (count, 2)) * [1, 1 - item.ellipticity]
    angle = np.deg2rad(item.angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    colour = 10 ** (-0.4 * blueness * np.array([-0.10, 0.0, 0.06, 0.10]))
    parts = []
    for weight, (dx, dy) in zip(weights, places @ turn.T, strict=True):
        sigma = float(rng.uniform(0.1, 0.35)) * min(item.r_eff_arcsec, 3.5)
        clump = galsim.Gaussian(sigma=sigma, gsparams=FAST).shift(float(dx), float(dy))
        parts.append((clump, light_B * weight * colour))
    return parts


def sersic(item: SkyObject) -> Any:
    """GalSim profile of unit flux, sheared at constant area."""
    axis_ratio = 1 - item.ellipticity
    profile = galsim.Sersic(n=item.sersic_n, half_light_radius=item.r_eff_arcsec, gsparams=FAST)
    return profile.shear(q=axis_ratio, beta=item.angle_deg * galsim.degrees)


def counts(canvas: Canvas, item: SkyObject) -> F64:
    """Total counts in each band, shape (B,)."""
    return canvas.survey.counts(np.array(item.mag))


def half_size(canvas: Canvas, item: SkyObject) -> float:
    """Half-side of a stamp that holds 99 % of an exponential disc, pixels."""
    major_arcsec = item.r_eff_arcsec / np.sqrt(1 - item.ellipticity)
    return float(min(4.5 * canvas.pix(major_arcsec) + 3 * canvas.fwhm_pix.max(), 400))
