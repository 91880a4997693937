"""How many of the true objects are found, by what they look like, with binomial intervals. numpy; no torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.stats import binom_conf_interval
from numpy.typing import NDArray

INTERVAL_SHORT = "95 % Wilson interval"
INTERVAL_TEXT = f"{INTERVAL_SHORT} (Wilson 1927; Brown, Cai & DasGupta 2001)"


@dataclass(frozen=True, kw_only=True)
class Property:
    """What true objects are binned by: its column in the truth table, and bins that do not depend on the sample.

    A bin is `step` wide, or, where `step` is None, a factor of the square root of two.
    """

    column: str
    name: str
    unit: str
    step: float | None

    def edges(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Edges of the bins that hold all values, rising, shape (B + 1,); values finite, positive without a step."""
        scaled = 2 * np.log2(values) if self.step is None else values / self.step
        numbers = np.arange(np.floor(scaled.min()), np.floor(scaled.max()) + 2)
        return np.asarray(2.0 ** (numbers / 2) if self.step is None else numbers * self.step)


PROPERTIES = (
    Property(column="mu_eff_g", name="mean surface brightness within r_eff, g", unit="mag/arcsec2", step=0.5),
    Property(column="r_eff_arcsec", name="half-light radius", unit="arcsec", step=None),
    Property(column="mag_g", name="magnitude, g", unit="mag", step=0.5),
)
"""Columns of the truth that `simulate` writes."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """True objects whose property lies in [low, high): how many, how many detected, how many selected."""

    low: float
    high: float
    n: int
    detected: int
    selected: int

    def record(self) -> dict[str, Any]:
        """Counts, and both shares with `_lo` and `_hi`."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("low", "high", "n", "detected", "selected")}
        for name, part in (("detected_share", self.detected), ("completeness", self.selected)):
            low, high = wilson(part, self.n)
            found |= {name: part / self.n, f"{name}_lo": low, f"{name}_hi": high}
        return found


def wilson(part: int, whole: int) -> tuple[float, float]:
    """95 % score interval of a share; `whole` is positive."""
    low, high = binom_conf_interval(part, whole, confidence_level=0.95, interval="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def in_bins(
    values: NDArray[np.float64], detected: NDArray[np.bool_], selected: NDArray[np.bool_], by: Property
) -> list[Bin]:
    """Bins that hold at least one true object; objects without a value (NaN, or a size that is not positive) in none.

    Parameters
    ----------
    values : float64 (M,)
        The property of each true object.
    detected, selected : bool (M,)
        Whether it has a row in the catalogue, and one that is selected.
    """
    known = np.isfinite(values) & ((values > 0) | (by.step is not None))
    if not known.any():
        return []
    edges = by.edges(values[known])
    place = np.searchsorted(edges, values[known], side="right") - 1
    counts = [
        np.bincount(place[chosen], minlength=len(edges) - 1)
        for chosen in (np.full(len(place), True), detected[known], selected[known])
    ]
    return [
        Bin(low=float(low), high=float(high), n=int(n), detected=int(found), selected=int(kept))
        for low, high, n, found, kept in zip(edges[:-1], edges[1:], *counts, strict=True)
        if n
    ]
