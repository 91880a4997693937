"""The margin cache of a version: for each cell of the sky, the rows that lie just outside it. No Ray, no torch.

Margins are made of the partitions as written. A version that continues another writes those anew that touch what
changed: rows of untouched partitions come from the old margins, never from the partitions themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from deepshadows import storage
from deepshadows.catalog.division import Division
from deepshadows.catalog.healpix import Partition
from deepshadows.catalog.partitions import in_sky_order, read_table, to_parquet
from deepshadows.catalog.pieces import Piece, gather, put_pieces


@dataclass(frozen=True, slots=True)
class MarginPlan:
    """What becomes of the margins of the version before: read again, or copied as they are."""

    stale: list[Partition]
    kept: list[Partition]


def plan_margins(before: Sequence[Partition], division: Division, changed: Collection[Partition]) -> MarginPlan:
    """Which margins of the version before touch what changed.

    Parameters
    ----------
    before : list of Partition
        Cells that have a margin in the version before.
    changed : list of Partition
        Partitions written anew, and those of the version before whose rows they hold.
    """
    cells = {(cell.order, cell.pixel) for cell in division.cells}
    stale = set().union(*(division.cells_around(partition) for partition in changed))
    for margin in before:
        if (margin.order, margin.pixel) not in cells:
            stale.update(division.cells_within(margin))
    read = {margin for margin in before if not stale.isdisjoint(division.cells_within(margin))}
    return MarginPlan([margin for margin in before if margin in read], [one for one in before if one not in read])


def stage_margin(
    table_url: str, margin: Partition, written: Sequence[Partition], division: Division, target: str
) -> list[Piece]:
    """Of a margin of the version before: the rows of untouched partitions, for the cells that take its place.

    Parameters
    ----------
    written : list of Partition
        Partitions of the version before that are written anew: what they give comes from there.
    """
    table = read_table(storage.join(table_url, margin.path))
    index = table["_healpix_29"].to_numpy()
    kept = np.ones(len(index), dtype=bool)
    for partition in written:
        kept &= (index < partition.first_index) | (index >= partition.end_index)
    table = table.filter(pa.array(kept))
    row, cell = division.margins_of(index[kept])
    within = np.isin(cell, np.fromiter(division.cells_within(margin), np.int64))
    return put_pieces(table.take(pa.array(row[within])), cell[within], target)


def write_margin(old: Sequence[Piece], new: Sequence[Piece], url: str) -> int:
    """Write the margin of one cell from rows that were in old margins and rows of partitions written; its rows.

    A cell that takes the place of several gets a row from each of their margins: it is kept once.
    """
    tables = [gather(new)] if new else []
    if old:
        table = gather(old)
        tables.append(table.group_by(table.column_names).aggregate([]).select(table.column_names).cast(table.schema))
    table = in_sky_order(pa.concat_tables(tables))
    storage.write(url, to_parquet(table))
    return len(table)
