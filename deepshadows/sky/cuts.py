"""The cuts that define the parent sample of candidates in DES (DOMAIN.md section 2). No Ray, no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows.outcomes import InputError

F64 = NDArray[np.float64]
Columns = dict[str, F64]

ARCSEC_PER_DES_PIXEL = 0.263


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One cut: `keep` is True for rows that pass; a NaN in any of `columns` fails it."""

    name: str
    columns: tuple[str, ...]
    keep: Callable[[Columns, float], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class CutCount:
    """What one cut rejected: of the rows that the cuts before it kept, of all rows alone, and for want of a value."""

    name: str
    rejected: int
    """Rows that passed all cuts before and fail this one; these sum to all rejects."""
    alone: int
    """Rows that fail this cut, whatever the others say."""
    not_measured: int
    """Those of `alone` that fail because a column is NaN."""


def _between(low: float, values: F64, high: float) -> NDArray[np.bool_]:
    return np.asarray((values > low) & (values < high))


def _colour_track(c: Columns, _: float) -> NDArray[np.bool_]:
    g_r, g_i = c["mag_auto_g"] - c["mag_auto_r"], c["mag_auto_g"] - c["mag_auto_i"]
    return np.asarray(np.abs(g_r - 0.7 * g_i) < 0.4)


DES_CUTS = (
    Cut(
        name="spread_model_i + 5/3 spreaderr_model_i > 0.007",
        columns=("spread_model_i", "spreaderr_model_i"),
        keep=lambda c, _: np.asarray(c["spread_model_i"] + 5 / 3 * c["spreaderr_model_i"] > 0.007),
    ),
    Cut(
        name="2.5 < flux_radius_g < 20 arcsec",
        columns=("flux_radius_g",),
        keep=lambda c, scale: _between(2.5, c["flux_radius_g"] * scale, 20.0),
    ),
    Cut(
        name="24.3 < mu_mean_model_g < 28",
        columns=("mu_mean_model_g",),
        keep=lambda c, _: _between(24.3, c["mu_mean_model_g"], 28.0),
    ),
    Cut(
        name="1 - b/a < 0.7",
        columns=("a_image", "b_image"),
        keep=lambda c, _: np.asarray(1 - c["b_image"] / c["a_image"] < 0.7),
    ),
    Cut(
        name="-0.1 < g-i < 1.4",
        columns=("mag_auto_g", "mag_auto_i"),
        keep=lambda c, _: _between(-0.1, c["mag_auto_g"] - c["mag_auto_i"], 1.4),
    ),
    Cut(
        name="|g-r - 0.7 (g-i)| < 0.4",
        columns=("mag_auto_g", "mag_auto_r", "mag_auto_i"),
        keep=_colour_track,
    ),
)


def des_cuts(
    table: pa.Table, pixel_scale_arcsec: float = ARCSEC_PER_DES_PIXEL
) -> tuple[NDArray[np.bool_], tuple[CutCount, ...]]:
    """Which rows pass all cuts, and what each cut rejected.

    Parameters
    ----------
    table : pa.Table
        Columns as `extraction.DETECTION_SCHEMA`; nulls count as NaN.
    pixel_scale_arcsec : float
        Of `flux_radius_g`.

    Returns
    -------
    keep : bool (N,)
    counts : tuple of CutCount
        In the order of `DES_CUTS`.

    Raises
    ------
    InputError
        A column is missing.
    """
    names = sorted({name for cut in DES_CUTS for name in cut.columns})
    if missing := [name for name in names if name not in table.column_names]:
        raise InputError(f"the DES cuts need the columns {', '.join(missing)}; the table has none of that name")
    columns = {name: _as_float(table[name]) for name in names}
    keep = np.ones(table.num_rows, dtype=bool)
    counts = []
    for cut in DES_CUTS:
        measured = np.logical_and.reduce([np.isfinite(columns[name]) for name in cut.columns])
        with np.errstate(invalid="ignore", divide="ignore"):
            passed = cut.keep(columns, pixel_scale_arcsec) & measured
        counts.append(
            CutCount(
                name=cut.name,
                rejected=int((keep & ~passed).sum()),
                alone=int((~passed).sum()),
                not_measured=int((~measured).sum()),
            )
        )
        keep &= passed
    return keep, tuple(counts)


def add_counts(parts: list[tuple[CutCount, ...]]) -> tuple[CutCount, ...]:
    """Sums over tiles, cut by cut."""
    return tuple(
        CutCount(
            name=same[0].name,
            rejected=sum(count.rejected for count in same),
            alone=sum(count.alone for count in same),
            not_measured=sum(count.not_measured for count in same),
        )
        for same in zip(*parts, strict=True)
    )


def _as_float(column: pa.ChunkedArray) -> F64:
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
