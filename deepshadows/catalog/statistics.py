"""What the rows of a work unit look like in a few numbers that add up over units. Arrays and tables in; no I/O.

`classify` writes them into the footer of each score object, a version keeps them in its inventory, and `drift` compares
them: so nobody reads rows again to see whether the sky, the images or the network have changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows.catalog.healpix import is_placed, sky_cells
from deepshadows.schema import Flag

LOG_ODDS_EDGES = np.arange(-10.0, 10.25, 0.5)
"""Edges of the bins of ln(p / (1 - p)); what lies beyond counts in the first or the last."""
BINS = len(LOG_ODDS_EDGES) - 1
REGION_ORDER = 3
"""A unit counts in the HEALPix cell of 7 degrees that holds its middle row."""
NO_REGION = -1


@dataclass(frozen=True, kw_only=True)
class UnitStatistics:
    """Counts and moments over the rows of one unit.

    Attributes
    ----------
    rows, unscored, out_of_domain : int
    region : int
        HEALPix cell of REGION_ORDER; NO_REGION where the unit has no place on the sky.
    scores : list of int, BINS
        Scored rows by log-odds of p_lsbg.
    mean, spread : list of float, F
        Of ln(1 + summary) over the scored images, see `model.domain.SUMMARIES`; empty where the network has no domain.
    """

    rows: int
    unscored: int
    out_of_domain: int
    region: int
    scores: list[int]
    mean: list[float]
    spread: list[float]


STATISTICS_SCHEMA = pa.schema(
    [
        ("rows", pa.int64()),
        ("unscored", pa.int64()),
        ("out_of_domain", pa.int64()),
        ("region", pa.int32()),
        ("scores", pa.list_(pa.int32())),
        ("mean", pa.list_(pa.float32())),
        ("spread", pa.list_(pa.float32())),
    ]
)


def unit_statistics(table: pa.Table, summaries: NDArray[np.float32]) -> UnitStatistics:
    """Of one unit.

    Parameters
    ----------
    table : pa.Table
        Its score table.
    summaries : float32 (scored, F)
        Of its scored images.
    """
    p = table["p_lsbg"].drop_null().to_numpy().astype(np.float64)
    with np.errstate(divide="ignore"):
        log_odds = np.log(p) - np.log1p(-p)
    x = np.log1p(summaries.astype(np.float64))
    outside = pc.bit_wise_and(table["flags"], pa.scalar(Flag.OUT_OF_DOMAIN.bit, pa.int32())).to_numpy()
    return UnitStatistics(
        rows=table.num_rows,
        unscored=table["p_lsbg"].null_count,
        out_of_domain=int(np.count_nonzero(outside)),
        region=_region(table),
        scores=np.histogram(log_odds.clip(LOG_ODDS_EDGES[0], LOG_ODDS_EDGES[-1]), LOG_ODDS_EDGES)[0].tolist(),
        mean=x.mean(axis=0).tolist() if len(x) else [],
        spread=x.std(axis=0).tolist() if len(x) else [],
    )


def _region(table: pa.Table) -> int:
    ra, dec = (table[name].fill_null(np.nan).to_numpy() for name in ("ra", "dec"))
    rows = np.flatnonzero(is_placed(ra, dec, table["flags"].to_numpy()))
    if not len(rows):
        return NO_REGION
    middle = rows[[len(rows) // 2]]
    return int(sky_cells(ra[middle], dec[middle], REGION_ORDER)[0])
