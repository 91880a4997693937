"""A version that continues another: which partitions are written anew, which are carried over. No Ray, no torch.

Whoever makes a new version from an old one and a change (`reprocess`) says which units go and gives the score objects
of those that come. Partitions that neither touches are copied by the store, and so are margins and parts of the id
index; the others are written from the rows that stay and those that come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.alignment import SkyCount
from deepshadows.catalog.exchange import KeptRows
from deepshadows.catalog.healpix import COUNT_ORDER, INDEX_ORDER, Partition, cover_sky, partition_numbers
from deepshadows.catalog.unit_rows import of_units, partitions_in, read_unit_rows, with_repeats
from deepshadows.catalog.version_folder import UNPLACED, VersionFolder


@dataclass(frozen=True)
class Base:
    """The version that a new one continues, and the units whose rows go, each as RUN/UNIT.

    Attributes
    ----------
    units : pa.Table
        Its `units.parquet`, see `unit_rows.UNIT_ROWS`.
    partitions : list of Partition
        Of its table, in the order of the sky.
    """

    folder: VersionFolder
    gone: pa.Array
    units: pa.Table
    partitions: list[Partition]

    @property
    def unplaced_rows(self) -> int:
        """Rows of the version before that have no place on the sky."""
        return int(pc.sum(self.units.filter(pc.is_null(self.units["Npix"]))["rows"]).as_py() or 0)


def continue_from(folder: VersionFolder, gone: Sequence[str]) -> Base:
    """Begin from a published version; it must stay current until the new one is, which `collection.swap` checks."""
    units = read_unit_rows(folder)
    return Base(folder, pa.array(gone, pa.string()), units, partitions_in(units))


@dataclass(frozen=True)
class Change:
    """What a change reaches of the version that it begins from.

    Attributes
    ----------
    touched : list of Partition
        Of the version before, whose rows go or are joined by others; they are not copied.
    empty : list of Partition
        Cells without rows in the version before that get some.
    carried : list of Partition
        Copied as they are.
    unplaced : bool
        Whether rows without a place on the sky go or come.
    """

    base: Base
    touched: list[Partition]
    empty: list[Partition]
    carried: list[Partition]
    unplaced: bool

    def kept_rows(self) -> list[KeptRows]:
        """The rows that stay, of what is written anew."""
        folder, gone = self.base.folder, self.base.gone
        repeats = with_repeats(self.base.units)
        kept = []
        for part in self.touched:
            left_out_url = folder.left_out_url(part.path) if (part.order, part.pixel) in repeats else ""
            kept.append(KeptRows(storage.join(folder.table_url, part.path), left_out_url, part.rows, gone))
        if self.unplaced:
            left_out_url = folder.left_out_url(UNPLACED) if (None, None) in repeats else ""
            kept.append(KeptRows(folder.unplaced_url, left_out_url, self.base.unplaced_rows, gone))
        return kept

    def carried_repeats(self) -> tuple[list[str], int]:
        """Paths of the files of repeats that are carried over, and the rows in them."""
        paths: dict[tuple[int | None, int | None], str] = {(part.order, part.pixel): part.path for part in self.carried}
        if not self.unplaced:
            paths[None, None] = UNPLACED
        held = self.base.units.filter(pc.greater(self.base.units["left_out"], 0))
        triples = list(zip(*(held[name].to_pylist() for name in ("Norder", "Npix", "left_out")), strict=True))
        kept = [(paths[order, pixel], rows) for order, pixel, rows in triples if (order, pixel) in paths]
        return sorted({path for path, _ in kept}), sum(rows for _, rows in kept)

    def partitions(self, counts: SkyCount, partition_rows: int) -> list[Partition]:
        """Those of the new version, in the order of the sky: carried ones, and others as the rows `counts` ask for."""
        written = counts.divide([*self.touched, *self.empty], partition_rows)
        return sorted([*self.carried, *written], key=lambda partition: partition.first_index)


def find_change(base: Base, pixels: NDArray[np.int64], unplaced: bool) -> Change:
    """What the units that go and the rows that come touch.

    Parameters
    ----------
    pixels : ndarray
        Pixels of COUNT_ORDER in which rows come, shape (P,).
    unplaced : bool
        Whether rows without a place come.
    """
    leaving = base.units.filter(of_units(base.units, base.gone))
    left = {(entry.order, entry.pixel) for entry in partitions_in(leaving)}
    cells = cover_sky(base.partitions)
    joined = partition_numbers(pixels << 2 * (INDEX_ORDER - COUNT_ORDER), cells)
    joined_cells = {(cells[number].order, cells[number].pixel) for number in np.unique(joined)}
    reached = left | joined_cells
    present = {(entry.order, entry.pixel) for entry in base.partitions}
    return Change(
        base=base,
        touched=[entry for entry in base.partitions if (entry.order, entry.pixel) in reached],
        empty=[cell for cell in cells if (cell.order, cell.pixel) in joined_cells - present],
        carried=[entry for entry in base.partitions if (entry.order, entry.pixel) not in reached],
        unplaced=unplaced or leaving["Npix"].null_count > 0,
    )
