"""Rows of one version that a condition and a cone select; reads the files, row groups and columns they need alone.

No Ray, no torch. Partitions are chosen by the cone and, where the condition names object_ids, by the id index; row
groups by the extremes in the footers. Rows without a place on the sky belong to every selection that has no cone.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.catalog.collection import partitions_of
from deepshadows.catalog.conditions import Condition, parse_condition
from deepshadows.catalog.cones import Cone
from deepshadows.catalog.healpix import Partition
from deepshadows.catalog.id_index import look_up
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.outcomes import NotFoundError, StorageError, UsageError

AHEAD = 4
"""Partitions read ahead of what was taken: 100 MB each where all rows of all columns match."""


@dataclass
class Read:
    """What a selection has read: files, of so many that the version has, row groups, and bytes of their columns."""

    files: int = 0
    files_of: int = 0
    row_groups: int = 0
    size_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


@dataclass(frozen=True)
class Selection:
    """What is wanted of a version; `read` counts as it goes.

    Attributes
    ----------
    schema : pa.Schema
        All columns of the catalogue.
    columns : tuple of str
        Those to give.
    """

    version: VersionFolder
    schema: pa.Schema
    columns: tuple[str, ...]
    condition: Condition | None = None
    cone: Cone | None = None
    read: Read = field(default_factory=Read)

    @property
    def output_schema(self) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in self.columns])

    def tables(self) -> Iterator[pa.Table]:
        """The rows, one file after the other in the order of the sky; the first table is empty.

        Raises
        ------
        StorageError
            The version was expired while it was read, or the store does not answer.
        """
        yield self.output_schema.empty_table()
        try:
            yield from self._all_rows()
        except (FileNotFoundError, NotFoundError) as error:
            raise StorageError(
                f"{self.version.url}: {error}: the version was expired while it was being read, or is damaged; "
                f"see `deepshadows versions {self.version.catalog}`, then run the selection again"
            ) from error

    def _all_rows(self) -> Iterator[pa.Table]:
        urls = [storage.join(self.version.table_url, partition.path) for partition in self._partitions()]
        if self.cone is None:
            urls.append(self.version.unplaced_url)
        waiting: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            for url in urls:
                waiting.append(pool.submit(self._rows, url))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _partitions(self) -> list[Partition]:
        """Partitions that may hold such rows."""
        found = partitions_of(self.version.table_url)
        self.read.files_of = len(found) + 1  # and the rows without a place
        if self.cone is not None:
            ranges = self.cone.ranges()
            found = [
                entry
                for entry in found
                if ((ranges[:, 0] < entry.end_index) & (ranges[:, 1] > entry.first_index)).any()
            ]
        if self.condition is not None and self.condition.ids is not None:
            ids = pa.array(sorted(self.condition.ids), self.schema.field("object_id").type)
            holding = {entry.path for entry in look_up(self.version.index_url, ids)}
            found = [entry for entry in found if entry.path in holding]
        return found

    @functools.cached_property
    def _filter(self) -> pc.Expression | None:
        parts = [] if self.condition is None else [self.condition.expression]
        if self.cone is not None:
            index = pc.field("_healpix_29")
            ranges = [(index >= int(first)) & (index < int(end)) for first, end in self.cone.ranges()]
            parts.append(functools.reduce(lambda a, b: a | b, ranges))
        return functools.reduce(lambda a, b: a & b, parts) if parts else None

    @property
    def _needed(self) -> list[str]:
        """Columns to give, and those that the cone is decided by."""
        return list(dict.fromkeys([*self.columns, *(("ra", "dec") if self.cone else ())]))

    def _rows(self, url: str) -> pa.Table:
        """Rows of one file."""
        filesystem, path = storage.arrow_location(url)
        try:
            fragment = pds.ParquetFileFormat().make_fragment(path, filesystem)
            fragment.ensure_complete_metadata()
            if self._filter is not None:
                fragment = fragment.subset(filter=self._filter, schema=self.schema)
            self._count(fragment)
            table = fragment.to_table(schema=self.schema, columns=self._needed, filter=self._filter)
        except FileNotFoundError:
            raise
        except storage.ARROW_ERRORS as error:
            raise storage.arrow_failure(url, error) from error
        if self.cone is not None:
            table = table.filter(pa.array(self.cone.holds(table)))
        return table.select(self.columns).cast(self.output_schema)

    def _count(self, fragment: pds.ParquetFileFragment) -> None:
        """Add up what the row groups of a file that may match hold of the columns needed."""
        needed = {*self._needed, *(self.condition.columns if self.condition else ())}
        if self.cone is not None:
            needed.add("_healpix_29")
        wanted = [number for number, name in enumerate(fragment.physical_schema.names) if name in needed]
        groups = [fragment.metadata.row_group(group.id) for group in fragment.row_groups]
        size = sum(group.column(number).total_compressed_size for group in groups for number in wanted)
        with self.read.lock:
            self.read.files += 1
            self.read.row_groups += len(groups)
            self.read.size_bytes += size


def select(
    version: VersionFolder, *, where: str | None = None, cone: Cone | None = None, columns: str | None = None
) -> Selection:
    """Prepare a selection: the condition is parsed and the columns are looked up, no rows are read yet.

    Parameters
    ----------
    version : VersionFolder
        One that is published, see `versions.find`.
    where, columns : str, optional
        A condition, and names between commas; without them all rows, all columns.

    Raises
    ------
    UsageError
        The condition or the columns do not fit the catalogue.
    """
    with storage.open_arrow(storage.join(version.table_url, "dataset", "_common_metadata")) as file:
        schema = pq.read_schema(file).remove_metadata()
    names = schema.names if columns is None else [name.strip() for name in columns.split(",")]
    for name in names:
        if name not in schema.names or names.count(name) > 1:
            what = "is given twice" if name in schema.names else "is no column of the catalogue"
            raise UsageError(f"--columns: {name!r} {what}; there are {', '.join(schema.names)}")
    condition = parse_condition(where, schema) if where is not None else None
    return Selection(version, schema, tuple(names), condition, cone)
