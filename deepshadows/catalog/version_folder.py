"""What one version of a catalogue is made of, and where it lies. Names only: no I/O, no Ray, no torch.

CAT/collection.properties         the pointer: the version that readers of the root see, and those published
CAT/vNNNN/claim.json              who took the number; it is never given out again
CAT/vNNNN/NAME/                   the table: HATS partitions of all rows that have a place on the sky
CAT/vNNNN/NAME_margin/            HATS margin cache: of each pixel, the rows just outside it
CAT/vNNNN/NAME_index/             HATS index: object_id -> pixel, sorted by object_id, in parts
CAT/vNNNN/unplaced.parquet        rows without a place on the sky
CAT/vNNNN/left_out/               repeats of objects that another unit has, by partition (`--duplicates first`)
CAT/vNNNN/units.parquet           how many rows of which unit lie in which partition
CAT/vNNNN/inventory.parquet       the units it was scored from, with statistics of their rows
CAT/vNNNN/diff.json, drift.json   what changed since the version before, and whether it looks as before
CAT/vNNNN/changes/                Parquet: the objects that changed side
CAT/vNNNN/quarantine/             units that `reprocess` could not read and their reasons, where there were any
CAT/vNNNN/rejects.parquet         with these: the ids of their rows, and of newly scored ones that lie on no tile
CAT/vNNNN/collection.properties   written last: the version is whole, and a HATS collection of its own
CAT/vNNNN/staging/                rows on their way to their partitions; gone before the version is published
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepshadows import storage

POINTER = "collection.properties"
CLAIM = "claim.json"
UNPLACED = "unplaced.parquet"
VERSION_NAME = re.compile(r"v\d{4,}")


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version; `catalog` is the root as `storage.normalise` gives it, `name` such as v0003."""

    catalog: str
    name: str

    @property
    def number(self) -> int:
        return int(self.name[1:])

    def is_before(self, name: str) -> bool:
        """Whether it was made before that one."""
        return self.number < VersionFolder(self.catalog, name).number

    @property
    def url(self) -> str:
        return storage.join(self.catalog, self.name)

    @property
    def table(self) -> str:
        """The table below the root, as the pointer names it."""
        return f"{self.name}/{table_name(self.catalog)}"

    @property
    def table_url(self) -> str:
        return storage.join(self.catalog, self.table)

    @property
    def margin_url(self) -> str:
        return storage.join(self.url, margin_name(self.catalog))

    @property
    def index_url(self) -> str:
        return storage.join(self.url, index_name(self.catalog))

    @property
    def unplaced_url(self) -> str:
        return storage.join(self.url, UNPLACED)

    @property
    def units_url(self) -> str:
        return storage.join(self.url, "units.parquet")

    @property
    def diff_url(self) -> str:
        return storage.join(self.url, "diff.json")

    @property
    def drift_url(self) -> str:
        return storage.join(self.url, "drift.json")

    def left_out_url(self, path: str) -> str:
        """Where the repeats lie that were left out of a partition, or of unplaced.parquet, of that path."""
        return storage.join(self.url, "left_out", path)

    @property
    def changed_url(self) -> str:
        return storage.join(self.url, "changes")

    @property
    def properties_url(self) -> str:
        return storage.join(self.url, POINTER)

    @property
    def claim_url(self) -> str:
        return storage.join(self.url, CLAIM)

    @property
    def staging_url(self) -> str:
        return storage.join(self.url, "staging")


def table_name(catalog: str) -> str:
    """The name of the catalogue as HATS readers show it: that of its folder, without odd characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", storage.name_of(catalog)) or "catalog"


def margin_name(catalog: str) -> str:
    return f"{table_name(catalog)}_margin"


def index_name(catalog: str) -> str:
    return f"{table_name(catalog)}_index"
