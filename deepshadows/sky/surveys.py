"""Facts of the surveys that we imitate: scale, zero point, seeing, depth, saturation. Imports numpy only.

Figures of DES are those of DOMAIN.md section 6 (DES DR1, arXiv:1801.03181, tables 1 and 3); those of HSC are the
Wide layer's (arXiv:1702.08449, table 3), its noise derived from the 5-sigma depth in a 2" aperture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from deepshadows.outcomes import UsageError

BANDS = ("g", "r", "i", "z")
"""Bands of a simulated tile, the order of every (B, ...) array of the simulation."""

NANOMAGGY_ZERO_POINT = 22.5


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a simulated tile must imitate. Mappings are keyed by band."""

    name: str
    pixel_scale_arcsec: float
    zero_point: float
    """Magnitude of one count in the FITS files."""
    psf_fwhm_arcsec: Mapping[str, float]
    sky_sigma_nmgy: Mapping[str, float]
    """Noise of blank sky per native pixel, nanomaggies."""
    saturation_mag: Mapping[str, float]
    """A star brighter than this reaches full well in its central pixel."""
    first_ra_deg: float
    """Centre of the first simulated tile."""
    first_dec_deg: float

    @property
    def bands(self) -> tuple[str, ...]:
        return BANDS

    @property
    def counts_per_nmgy(self) -> float:
        """1000 for a zero point of 30."""
        return float(10 ** (0.4 * (self.zero_point - NANOMAGGY_ZERO_POINT)))

    def fwhm_pix(self) -> NDArray[np.float64]:
        """Seeing in pixels, shape (B,)."""
        return np.array([self.psf_fwhm_arcsec[band] for band in BANDS]) / self.pixel_scale_arcsec

    def sky_sigma_counts(self) -> NDArray[np.float64]:
        """Noise of blank sky per pixel in counts, shape (B,)."""
        return np.array([self.sky_sigma_nmgy[band] for band in BANDS]) * self.counts_per_nmgy

    def counts(self, mag: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts of magnitudes, any shape."""
        return np.asarray(10 ** (0.4 * (self.zero_point - np.asarray(mag, dtype=np.float64))))


def _by_band(g: float, r: float, i: float, z: float) -> Mapping[str, float]:
    return MappingProxyType({"g": g, "r": r, "i": i, "z": z})


DES = Survey(
    name="des",
    pixel_scale_arcsec=0.263,
    zero_point=30.0,
    psf_fwhm_arcsec=_by_band(1.12, 0.96, 0.88, 0.84),
    sky_sigma_nmgy=_by_band(0.0028, 0.0036, 0.0064, 0.0128),
    saturation_mag=_by_band(15.2, 15.7, 15.8, 15.5),
    first_ra_deg=30.0,
    first_dec_deg=-30.0,
)

HSC = Survey(
    name="hsc",
    pixel_scale_arcsec=0.168,
    zero_point=27.0,
    psf_fwhm_arcsec=_by_band(0.72, 0.67, 0.60, 0.63),
    sky_sigma_nmgy=_by_band(0.00048, 0.00076, 0.00092, 0.0018),
    saturation_mag=_by_band(17.8, 18.2, 18.4, 17.6),
    first_ra_deg=34.0,
    first_dec_deg=-4.0,
)

_SURVEYS: Mapping[str, Survey] = MappingProxyType({survey.name: survey for survey in (DES, HSC)})


def by_name(name: str) -> Survey:
    """The survey of that name; raises `UsageError` for one that we do not know."""
    try:
        return _SURVEYS[name]
    except KeyError as error:
        raise UsageError(f"survey {name!r} is not known; choose one of {', '.join(_SURVEYS)}") from error
