"""The pixels that objects are drawn on: one tile in all bands, with its point-spread functions. No Ray, no files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deepshadows.sky.surveys import Survey

F64 = NDArray[np.float64]

MOFFAT_BETA = 3.5
"""Wings of the coadded PSF; 2.5 to 4.5 in ground-based surveys (Trujillo et al. 2001)."""

FAST = galsim.GSParams(
    folding_threshold=2e-2,
    maxk_threshold=2e-2,
    kvalue_accuracy=1e-3,
    stepk_minimum_hlr=3,
    maximum_fft_size=4096,
)
"""Loose enough for 1 ms a stamp of 170 pixels (strict: 9 ms); magnitudes keep 0.01."""


@dataclass(frozen=True)
class Window:
    """The part of a square around a position that lies on the tile.

    `dx`, `dy` are distances from the position in pixels, shapes (1, W) and (H, 1).
    """

    rows: slice
    columns: slice
    dx: F64
    dy: F64

    @property
    def empty(self) -> bool:
        return self.dx.size == 0 or self.dy.size == 0


@dataclass(frozen=True)
class Canvas:
    """Counts of one tile, `flux` float32 (B, H, W), bands g, r, i, z; drawing adds to it in place."""

    flux: NDArray[np.float32]
    survey: Survey
    fwhm_pix: F64
    """Seeing of each band, shape (B,)."""

    @classmethod
    def blank(cls, survey: Survey, size_pix: int, fwhm_pix: F64 | None = None) -> Canvas:
        flux = np.zeros((len(survey.bands), size_pix, size_pix), dtype=np.float32)
        return cls(flux, survey, survey.fwhm_pix() if fwhm_pix is None else fwhm_pix)

    def pix(self, arcsec: float) -> float:
        return arcsec / self.survey.pixel_scale_arcsec

    def window(self, x: float, y: float, half_pix: float) -> Window:
        """The square of half-side `half_pix` around (x, y), cut at the edges of the tile."""
        height, width = self.flux.shape[1:]
        half = int(np.ceil(half_pix))
        left, right = max(round(x) - half, 0), min(round(x) + half + 1, width)
        bottom, top = max(round(y) - half, 0), min(round(y) + half + 1, height)
        columns, rows = slice(left, max(left, right)), slice(bottom, max(bottom, top))
        dx = np.arange(columns.start, columns.stop, dtype=np.float64)[None, :] - x
        dy = np.arange(rows.start, rows.stop, dtype=np.float64)[:, None] - y
        return Window(rows, columns, dx, dy)

    def add(self, window: Window, light_BHW: NDArray[Any]) -> None:
        """Add counts on a window, shape (B, H, W)."""
        self.flux[:, window.rows, window.columns] += light_BHW

    def add_shape(self, window: Window, shape_HW: F64, counts_B: F64) -> None:
        """Add one shape (per pixel, times counts) in all bands."""
        if not window.empty:
            self.add(window, counts_B[:, None, None].astype(np.float32) * shape_HW.astype(np.float32))

    def add_profile(self, parts: list[tuple[Any, F64]], x: float, y: float, half_pix: float) -> None:
        """Convolve GalSim profiles with each band's PSF and add them.

        Parameters
        ----------
        parts : list of (galsim.GSObject, counts)
            Profiles of unit flux in arcsec about (x, y), with their counts in each band, shape (B,).
        x, y : float
            Pixels.
        half_pix : float
            Half-side of the stamp.
        """
        half = int(np.ceil(half_pix))
        x_pix, y_pix = round(x), round(y)
        window = self.window(x_pix, y_pix, half)
        if window.empty:
            return
        rows = slice(window.rows.start - y_pix + half, window.rows.stop - y_pix + half)
        columns = slice(window.columns.start - x_pix + half, window.columns.stop - x_pix + half)
        scale = self.survey.pixel_scale_arcsec
        for band, fwhm in enumerate(self.fwhm_pix):
            light = galsim.Sum([part.withFlux(float(counts[band])) for part, counts in parts], gsparams=FAST)
            image = galsim.ImageF(2 * half + 1, 2 * half + 1, scale=scale)
            seen = galsim.Convolve(light, point_spread(float(fwhm * scale)), gsparams=FAST)
            seen.drawImage(image, method="no_pixel", offset=(x - x_pix, y - y_pix))
            self.flux[band, window.rows, window.columns] += image.array[rows, columns]


@lru_cache(maxsize=16)
def point_spread(fwhm_arcsec: float) -> Any:
    """The PSF of one seeing, pixel response included; shared, GalSim keeps its look-up tables."""
    return galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm_arcsec, gsparams=FAST)


def moffat_width(fwhm: F64, beta: float = MOFFAT_BETA) -> F64:
    """Scale radius of a Moffat profile of the given FWHM, same unit."""
    return np.asarray(0.5 * fwhm / np.sqrt(2 ** (1 / beta) - 1))


def elliptical_radius(window: Window, ellipticity: float, angle_deg: float) -> F64:
    """Radius whose ellipses have the area of circles, pixels, shape (H, W)."""
    axis_ratio = 1 - ellipticity
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    along = window.dx * cos + window.dy * sin
    across = window.dy * cos - window.dx * sin
    return np.asarray(np.sqrt(along**2 * axis_ratio + across**2 / axis_ratio))
