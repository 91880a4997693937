"""What a version was scored from: CAT/vNNNN/inventory.parquet, one row a work unit. No Ray, no torch.

From it the next version knows what need not be scored again, and what its scores and images are compared with.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepshadows import storage
from deepshadows.catalog.statistics import STATISTICS_SCHEMA
from deepshadows.outcomes import InputError

NAME = "inventory.parquet"
_SUMMARY_KEY = b"deepshadows.summary"
UNIT_COLUMNS = pa.schema(
    [
        ("unit", pa.string()),
        ("kind", pa.string()),
        ("url", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("tile", pa.string()),
        ("run", pa.string()),  # that scored it
        ("reason", pa.string()),  # why it is quarantined; empty where it is scored
    ]
)
INVENTORY_SCHEMA = pa.schema([*UNIT_COLUMNS, *(field for field in STATISTICS_SCHEMA if field.name != "rows")])


class InventorySummary(BaseModel):
    """What is true of all its units."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(description="What the scores depend on beside the unit, see RunRecord; empty: not one recipe.")
    id_type: str = Field(description="Of the identifiers: int64 or string.")
    checkpoint: dict[str, Any] = Field(description="Name and sha256 of the network.")
    runs: dict[str, dict[str, Any]] = Field(description="Engine and software versions of each run that scored units.")


@dataclass(frozen=True)
class Inventory:
    """The units of one version; columns of INVENTORY_SCHEMA, statistics null where a unit is quarantined."""

    summary: InventorySummary
    units: pa.Table

    @property
    def scored(self) -> pa.Table:
        """Units whose rows are in the version."""
        return self.units.filter(pc.equal(self.units["reason"], ""))

    @property
    def quarantined(self) -> pa.Table:
        return self.units.filter(pc.not_equal(self.units["reason"], ""))

    def row_figures(self) -> dict[str, int]:
        """planned = scored + unscored + quarantined, over all units."""
        planned, there = (pc.sum(table["rows"]).as_py() or 0 for table in (self.units, self.scored))
        unscored = pc.sum(self.scored["unscored"]).as_py() or 0
        return {"planned": planned, "scored": there - unscored, "unscored": unscored, "quarantined": planned - there}


def write(version_url: str, inventory: Inventory) -> None:
    """Put it; readers come to it through the pointer only."""
    sink = io.BytesIO()
    metadata = {_SUMMARY_KEY: inventory.summary.model_dump_json().encode()}
    pq.write_table(inventory.units.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write(storage.join(version_url, NAME), sink.getvalue())


def read(version_url: str) -> Inventory | None:
    """What `write` wrote; None where the version has none.

    Raises
    ------
    InputError
        It is damaged.
    """
    url = storage.join(version_url, NAME)
    if not storage.exists(url):
        return None
    try:
        with storage.open_arrow(url) as file:
            table = pq.read_table(file)
        summary = InventorySummary.model_validate_json((table.schema.metadata or {}).get(_SUMMARY_KEY, b""))
        return Inventory(summary, table.cast(INVENTORY_SCHEMA))
    except ValidationError as error:
        raise InputError(f"{url}: damaged: {error}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise storage.arrow_failure(url, error) from error
