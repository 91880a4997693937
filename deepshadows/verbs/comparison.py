"""Compares a new version with the one before, one Ray task a partition that was written anew: what changed side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from deepshadows import storage
from deepshadows.catalog.changes import COMPARED, Changes, compare
from deepshadows.catalog.collection import NewVersion, partitions_of
from deepshadows.catalog.healpix import SKY_END, Partition
from deepshadows.catalog.partitions import read_table
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.verbs.progress import track
from deepshadows.verbs.tasks import in_order
from deepshadows.verbs.version_plan import VersionPlan
from deepshadows.verbs.version_writing import Tally


@dataclass(frozen=True, kw_only=True)
class Side:
    """Files that hold the rows of one side, and the range of `_healpix_29` they are wanted for, [first, end)."""

    urls: tuple[str, ...]
    span: tuple[int, int] | None = None

    def read(self, id_type: pa.DataType) -> pa.Table:
        """The columns that a comparison needs."""
        columns = COMPARED if self.span is None else [*COMPARED, "_healpix_29"]
        tables = [read_table(url, columns) for url in self.urls]
        if not tables:
            return _nothing(id_type)
        table = pa.concat_tables(tables)
        if self.span is not None:
            index = table["_healpix_29"]
            table = table.filter(pc.and_(pc.greater_equal(index, self.span[0]), pc.less(index, self.span[1])))
        return table.select(COMPARED).replace_schema_metadata(None)


def _nothing(id_type: pa.DataType) -> pa.Table:
    kinds = (id_type, pa.float64(), pa.float64(), pa.float32(), pa.int32())
    return pa.schema(list(zip(COMPARED, kinds, strict=True))).empty_table()


def compare_sides(before: Side, now: Side, threshold: float, id_type: pa.DataType, url: str) -> Changes:
    """Compare, and put the objects that changed side to `url` where there are any."""
    changes, moved = compare(before.read(id_type), now.read(id_type), threshold)
    if moved.num_rows:
        storage.write_table(url, moved)
    return changes


def compare_versions(version: NewVersion, plan: VersionPlan, tally: Tally, threshold: float) -> Changes:
    """What changed since the version before; partitions carried over are known to be the same and are not read.

    A partition answers for the empty sky up to the next one too: what the version before had there is gone.
    """
    if version.before is None:
        return Changes()
    before = VersionFolder(version.catalog, version.before.version)
    items = [
        (old, new, threshold, plan.id_type, storage.join(version.changed_url, f"{name}.parquet"))
        for name, old, new in _pairs(before, version, plan, tally)
    ]
    total = Changes(unchanged=sum(entry.rows for entry in plan.carried))
    for changes in track(in_order(ray.remote(compare_sides), items), "comparing with the version before", len(items)):
        total += changes
    return total


def _pairs(
    before: VersionFolder, version: NewVersion, plan: VersionPlan, tally: Tally
) -> Iterator[tuple[str, Side, Side]]:
    """What is to be compared: a name, the files before, the file now."""
    carried = {(entry.order, entry.pixel) for entry in plan.carried}
    old = partitions_of(before.table_url)
    begins = np.array([entry.first_index for entry in old], np.int64)
    ends = np.array([entry.end_index for entry in old], np.int64)
    for entry, span in zip(tally.partitions, spans(tally.partitions), strict=True):
        within = np.flatnonzero((begins < span[1]) & (ends > span[0]))
        same = (entry.order, entry.pixel) in carried
        if same and len(within) == 1:
            continue
        urls = tuple(
            storage.join(before.table_url, old[number].path)
            for number in within
            if not (same and (old[number].order, old[number].pixel) == (entry.order, entry.pixel))
        )
        now = () if same else (storage.join(version.table_url, entry.path),)
        yield f"{entry.order}-{entry.pixel}", Side(urls=urls, span=span), Side(urls=now)
    if plan.change is None or plan.change.unplaced:
        rest = [] if tally.partitions else old  # nothing has a place on the sky any more
        unplaced = (before.unplaced_url, *(storage.join(before.table_url, entry.path) for entry in rest))
        yield "unplaced", Side(urls=unplaced), Side(urls=(version.unplaced_url,))


def spans(partitions: Sequence[Partition]) -> list[tuple[int, int]]:
    """Ranges of `_healpix_29` that together are the whole sky: each partition's, with the empty sky that follows it."""
    begins = [0, *(partition.first_index for partition in partitions[1:])]
    return list(zip(begins, [*begins[1:], SKY_END], strict=True)) if partitions else []
