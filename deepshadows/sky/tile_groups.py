"""Detections in the order of their tiles, sorted on disk: more of them than memory holds. No Ray, no torch.

Blocks are sorted in memory and written as memory-mapped Arrow files, 28 bytes a detection; rows in the order of the
tiles are slices of these. Within a tile they keep the order of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows.outcomes import InputError, StorageError
from deepshadows.schema import DEC, RA, id_field
from deepshadows.sky.detections import Detections


def detection_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of a run's own detections."""
    return pa.schema([id_field(id_type), RA, DEC, pa.field("flags", pa.int32())])


class TileGroups:
    """Collects detections with the group of each, and gives them back group by group.

    Parameters
    ----------
    folder : Path
        Empty folder on a local disk, for as long as this lives.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sorted: list[pa.Table] = []
        self._groups: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []
        self.rows = 0

    @property
    def id_type(self) -> pa.DataType:
        """Type of the identifiers, int64 or string."""
        return self._sorted[0].schema.field("object_id").type

    def add(self, detections: Detections, group: NDArray[np.int64], where: str) -> None:
        """Take up a block.

        Parameters
        ----------
        group : int64 (N,)
            The group of each detection; they come back by rising number.
        where : str
            What an error names.

        Raises
        ------
        InputError
            The identifiers are of another type than those before.
        """
        if self._sorted and detections.object_id.type != self.id_type:
            raise InputError(f"{where}: object_id is {detections.object_id.type} here and {self.id_type} before")
        order = np.argsort(group, kind="stable")
        columns = [
            detections.object_id.take(pa.array(order)),
            pa.array(detections.ra[order], from_pandas=True),
            pa.array(detections.dec[order], from_pandas=True),
            pa.array(detections.flags[order]),
        ]
        self._sorted.append(self._on_disk(pa.table(columns, schema=detection_schema(detections.object_id.type))))
        present, counts = np.unique(group, return_counts=True)
        self._groups.append(present)
        self._counts.append(counts)
        self.rows += len(group)

    def _on_disk(self, table: pa.Table) -> pa.Table:
        path = self._folder / f"{len(self._sorted):05d}.arrow"
        try:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        except OSError as error:
            raise StorageError(
                f"{path}: sorting detections needs 28 bytes of scratch disk each: {error}; set TMPDIR to a larger disk"
            ) from error
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    @cached_property
    def _segments(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Runs of rows of one group in one block, sorted by group, then block: group, block, first row there, and end
        within all rows; shape (S,) each."""
        block = np.repeat(np.arange(len(self._groups)), [len(present) for present in self._groups])
        first = np.concatenate([np.cumsum(counts) - counts for counts in self._counts])
        group, rows = np.concatenate(self._groups), np.concatenate(self._counts)
        order = np.lexsort((block, group))
        return group[order], block[order], first[order], np.cumsum(rows[order])

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """Number, first row and rows of each group."""
        group, _, _, end = self._segments
        last = np.flatnonzero(np.diff(group, append=group[-1:] + 1))
        begin = 0
        for at in last:
            yield int(group[at]), begin, int(end[at]) - begin
            begin = int(end[at])

    def read(self, first_row: int, rows: int) -> pa.Table:
        """Rows of the whole, in the order of the groups."""
        _, blocks, firsts, ends = self._segments
        at = int(np.searchsorted(ends, first_row, side="right"))
        slices, wanted = [], rows
        while wanted:
            begin = int(ends[at - 1]) if at else 0
            skip = first_row + rows - wanted - begin
            some = min(wanted, int(ends[at]) - begin - skip)
            slices.append(self._sorted[blocks[at]].slice(int(firsts[at]) + skip, some))
            wanted, at = wanted - some, at + 1
        return pa.concat_tables(slices).combine_chunks()
