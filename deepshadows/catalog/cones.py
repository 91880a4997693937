"""Cones on the sky: parsed, as ranges of `_healpix_29`, and to the row. Arrays in, arrays out; no I/O, no Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.coordinates import Latitude, Longitude, angular_separation
from cdshealpix.nested import cone_search
from numpy.typing import NDArray

from deepshadows.catalog.healpix import INDEX_ORDER
from deepshadows.outcomes import UsageError

MOST_RANGES = 32
"""Ranges that a cone is told in: enough to pass over row groups, few enough to compare each row with."""
_WIDEST_ARCSEC = 180 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Cone:
    """All that lies within a radius of a position, ICRS."""

    ra_deg: float
    dec_deg: float
    radius_arcsec: float

    def __str__(self) -> str:
        return f"{self.radius_arcsec:g} arcsec around ra {self.ra_deg:g}, dec {self.dec_deg:g}"

    def ranges(self) -> NDArray[np.int64]:
        """Ranges [first, end) of `_healpix_29` that hold the cone and little more, in order, shape (R, 2)."""
        radius_deg = self.radius_arcsec / 3600
        order = math.floor(math.log2(4 * 58.6 / radius_deg))  # pixels of order 0 are 58.6 deg wide; a quarter of it
        pixels, orders, _ = cone_search(
            Longitude(self.ra_deg * u.deg),
            Latitude(self.dec_deg * u.deg),
            radius_deg * u.deg,
            min(max(order, 0), INDEX_ORDER - 2),
        )
        shift = (2 * (INDEX_ORDER - orders.astype(np.int64))).astype(np.int64)
        first = pixels.astype(np.int64) << shift
        return _merge(np.stack([first, first + (1 << shift)], axis=1))

    def holds(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which rows of a table with `ra` and `dec` lie within the cone, shape (N,)."""
        ra, dec = (np.radians(table[name].to_numpy()) for name in ("ra", "dec"))
        apart = angular_separation(math.radians(self.ra_deg), math.radians(self.dec_deg), ra, dec)
        return np.asarray(np.degrees(apart) * 3600 <= self.radius_arcsec, dtype=np.bool_)


def _merge(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join ranges that touch, then those with the smallest gaps until MOST_RANGES are left."""
    ranges = ranges[np.argsort(ranges[:, 0])]
    gaps = ranges[1:, 0] - ranges[:-1, 1]
    kept = np.sort(np.argsort(gaps, kind="stable")[::-1][: MOST_RANGES - 1])
    kept = kept[gaps[kept] > 0]
    return np.stack([ranges[np.r_[0, kept + 1], 0], ranges[np.r_[kept, len(ranges) - 1], 1]], axis=1)


def parse_cone(text: str) -> Cone:
    """A cone given as RA_DEG,DEC_DEG,RADIUS_ARCSEC.

    Raises
    ------
    UsageError
        It is not three numbers, or one is out of range.
    """
    try:
        ra_deg, dec_deg, radius_arcsec = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--cone {text!r}: give RA_DEG,DEC_DEG,RADIUS_ARCSEC, such as 54.62,-35.45,60") from error
    for name, value, low, high in (
        ("right ascension", ra_deg, 0, 360),
        ("declination", dec_deg, -90, 90),
        ("radius in arcsec", radius_arcsec, 1e-3, _WIDEST_ARCSEC),
    ):
        if not low <= value <= high:
            raise UsageError(f"--cone {text!r}: the {name} {value:g} is not between {low:g} and {high:g}")
    return Cone(ra_deg=ra_deg, dec_deg=dec_deg, radius_arcsec=radius_arcsec)
