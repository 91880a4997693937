"""The plan of a new version: rows counted over the sky by Ray tasks, and the partitions that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
from hats.pixel_math.healpix_shim import margin2order

from deepshadows.catalog.alignment import SkyCount
from deepshadows.catalog.collection import read_properties
from deepshadows.catalog.continuation import Base, Change, find_change
from deepshadows.catalog.division import Division, id_bounds
from deepshadows.catalog.exchange import Counted, Source, count_rows
from deepshadows.catalog.healpix import Partition, cover_sky
from deepshadows.catalog.id_index import IndexPart, read_parts
from deepshadows.catalog.score_objects import ScoreSource, in_chunks
from deepshadows.verbs.progress import track
from deepshadows.verbs.tasks import in_order

CHUNK_ROWS = 500_000
"""Rows of one task of the two passes: about 60 MB."""


@dataclass(frozen=True)
class VersionPlan:
    """What is written, from what, and what is carried over from the version before.

    Attributes
    ----------
    sources : list
        Score objects, and what stays of partitions written anew.
    rows_in : int
        Rows of the sources.
    change : Change or None
        What is different from the version before, where one is continued.
    parts : list of IndexPart
        The id index of the version before; its parts have the numbers of `division.parts_of`.
    """

    division: Division
    id_type: pa.DataType
    sources: list[Source]
    rows_in: int
    margin_arcsec: float
    change: Change | None = None
    parts: tuple[IndexPart, ...] = ()

    @property
    def carried(self) -> list[Partition]:
        return self.change.carried if self.change else []


class _Count:
    """What counting tasks found, added up."""

    def __init__(self, id_type: pa.DataType) -> None:
        self.sky, self.rows, self.placed = SkyCount(), 0, 0
        self.ids: list[pa.Array] = []
        self._id_type = id_type

    def add(self, sources: Sequence[Source], description: str) -> None:
        chunks = in_chunks(sources, CHUNK_ROWS)
        results = in_order(ray.remote(count_rows), ((chunk, self._id_type) for chunk in chunks))
        counted: Counted
        for counted in track(results, description, len(chunks)):
            self.sky.add((counted.pixels, counted.rows))
            self.rows += counted.total
            self.placed += int(counted.rows.sum())
            self.ids.append(counted.ids)


def plan_version(
    sources: list[ScoreSource],
    id_type: pa.DataType,
    partition_rows: int,
    margin_arcsec: float,
    base: Base | None = None,
) -> VersionPlan:
    """Count the rows on the sky; choose partitions and parts of the index. A continued version keeps its margin."""
    count = _Count(id_type)
    count.add(sources, "counting rows on the sky")
    if base is None:
        cells = cover_sky(count.sky.align(partition_rows))
        division = Division(cells, _margin_order(margin_arcsec), id_bounds(count.ids, id_type))
        return VersionPlan(division, id_type, list(sources), count.rows, margin_arcsec)
    change = find_change(base, count.sky.occupied(), count.placed < count.rows)
    kept = change.kept_rows()
    count.add(kept, "counting rows that stay")
    cells = cover_sky(change.partitions(count.sky, partition_rows))
    margin_arcsec = read_properties(base.folder.margin_url).margin_threshold
    parts = read_parts(base.folder.index_url)
    bounds = pa.array([part.first for part in parts[1:]], id_type)
    division = Division(cells, _margin_order(margin_arcsec), bounds)
    return VersionPlan(division, id_type, [*sources, *kept], count.rows, margin_arcsec, change, tuple(parts))


def _margin_order(margin_arcsec: float) -> int:
    """Order of the smallest pixels that are wider than the margin."""
    return int(margin2order(margin_thr_arcmin=margin_arcsec / 60))
