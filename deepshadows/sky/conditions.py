"""How well a simulated tile was observed: its seeing, its depth, how its noise looks. Imports no Ray, no files.

Measured on tiles and cut-outs of DES DR1 and Legacy DR5 to DR9. Sigma per pixel is 0.6 to 1.1 of the survey's nominal
figure on the tiles and, by comparison with simulated ones, 0.4 to 0.6 on the cut-outs. Neighbouring pixels of a coadd
are correlated: 2x2 means keep 0.55 to 0.63 of the sigma of a pixel instead of 0.5. Blank sky lies up to a tenth of a
sigma off zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepshadows.sky.surveys import Survey

F64 = NDArray[np.float64]

DEPTH = (0.80, 0.80, 0.76, 0.60)
"""Median of a tile's sigma on large scales over the nominal one, g, r, i, z; with the median grain 0.73 of that remains
per pixel."""
DEPTH_SCATTER = 0.20
"""Natural logarithm, as all scatters here."""
BAND_SCATTER = 0.12
GRAIN = (0.03, 0.12)
LEVEL = (-0.02, 0.05)
"""Mean and scatter of what the background estimate leaves of blank sky, in sigmas: it takes faint halos for sky."""
SEEING_SCATTER = 0.07
STEP_CHANCE = 0.25
"""Of a band that a chip's edge crosses the tile with another sky level on its far side."""

_ROWS_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Of one tile, bands in the order of `surveys.BANDS`.

    Attributes
    ----------
    fwhm_pix : float64 (B,)
        Seeing.
    sigma_counts : float64 (B,)
        Noise of blank sky, as that of white noise of the same power on large scales.
    grain : float
        Weight that each pixel's noise gives to either neighbour, 0 (white) to 0.2.
    level_counts : float64 (B,)
        Of blank sky after the background was taken away.
    """

    fwhm_pix: F64
    sigma_counts: F64
    grain: float
    level_counts: F64


def draw_conditions(rng: np.random.Generator, survey: Survey) -> Conditions:
    """Seeing, depth and grain of one tile."""
    bands = len(survey.bands)
    depth = np.array(DEPTH) * rng.lognormal(0, DEPTH_SCATTER) * rng.lognormal(0, BAND_SCATTER, bands)
    sigma_counts = survey.sky_sigma_counts() * depth
    return Conditions(
        fwhm_pix=survey.fwhm_pix() * rng.lognormal(0, SEEING_SCATTER, bands),
        sigma_counts=sigma_counts,
        grain=float(rng.uniform(*GRAIN)),
        level_counts=sigma_counts * rng.normal(*LEVEL, bands),
    )


def add_sky(flux_BHW: NDArray[np.float32], conditions: Conditions, rng: np.random.Generator) -> None:
    """Add what the sky leaves in a coadd, in place: correlated noise and, now and then, a step at a chip's edge."""
    for light, sigma in zip(flux_BHW, conditions.sigma_counts, strict=True):
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        light += _grainy(noise, conditions.grain) * np.float32(sigma)
        if rng.random() < STEP_CHANCE:
            edge = int(rng.integers(light.shape[0]))
            side = light[edge:] if rng.random() < 0.5 else light[:, edge:]
            side += np.float32(rng.normal(0, 0.4) * sigma)


def _grainy(noise: NDArray[np.float32], grain: float) -> NDArray[np.float32]:
    """The mean of each pixel and its neighbours, first of its column, then of its row; the edges meet.

    A few rows at a time, which stay in the cache: a third of the time of scipy's filter, with the same sums.
    """
    side, centre = np.float64(np.float32(grain)), np.float64(np.float32(1 - 2 * grain))
    mixed = np.empty_like(noise)
    for start in range(0, len(noise), _ROWS_AT_A_TIME):
        stop = min(start + _ROWS_AT_A_TIME, len(noise))
        rows = noise[np.arange(start - 1, stop + 1) % len(noise)].astype(np.float64)
        rows = (rows[1:-1] * centre + (rows[:-2] + rows[2:]) * side).astype(np.float32).astype(np.float64)
        wide = np.concatenate([rows[:, -1:], rows, rows[:, :1]], axis=1)
        mixed[start:stop] = rows * centre + (wide[:, :-2] + wide[:, 2:]) * side
    return mixed
