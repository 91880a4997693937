"""The inventory of a version that is to be: its units, who scored them, what their rows look like. No Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from deepshadows.catalog.inventory import INVENTORY_SCHEMA, Inventory, InventorySummary
from deepshadows.catalog.statistics import STATISTICS_SCHEMA
from deepshadows.run.scores import Receipt
from deepshadows.run.units import Unit
from deepshadows.verbs.classify_plan import Planned

_OF_UNITS = ("unit", "kind", "url", "etag", "size_bytes", "first_row", "rows", "tile")
_STATISTICS = [name for name in STATISTICS_SCHEMA.names if name != "rows"]


def take_stock(
    planned: Planned, receipts: Iterable[Receipt], reasons: dict[str, str], engine: str, known: Inventory | None
) -> Inventory:
    """All units of the input: those of `known` as they are there, the others as the run of `planned` left them.

    Parameters
    ----------
    receipts : iterable of Receipt
        Of units that were scored.
    reasons : dict
        Why units are quarantined.
    engine : str
        That the run recorded.
    """
    record = planned.record
    present = _table(planned.present)
    earlier = known.scored if known else INVENTORY_SCHEMA.empty_table()
    place = pc.index_in(present["unit"], value_set=earlier["unit"].combine_chunks())
    fresh = _with_outcome(present.filter(pc.is_null(place)), record.run, receipts, reasons)
    units = pa.concat_tables([earlier.take(pc.drop_null(place)), fresh]).sort_by("unit")
    runs = {**(known.summary.runs if known else {}), record.run: {"engine": engine, "versions": record.versions}}
    named = set(pc.unique(units["run"]).to_pylist())
    summary = InventorySummary(
        recipe=record.recipe,
        id_type=record.id_type,
        checkpoint=record.checkpoint,
        runs={run: facts for run, facts in runs.items() if run in named},
    )
    return Inventory(summary, units)


def _table(units: Iterable[Unit]) -> pa.Table:
    columns: dict[str, list[object]] = {name: [] for name in _OF_UNITS}
    for unit in units:
        for name, values in columns.items():
            values.append(getattr(unit, name))
    return pa.table(columns, schema=pa.schema([INVENTORY_SCHEMA.field(name) for name in _OF_UNITS]))


def _with_outcome(units: pa.Table, run: str, receipts: Iterable[Receipt], reasons: dict[str, str]) -> pa.Table:
    """The same with run, reason and statistics; these are null where a unit is quarantined."""
    told = {receipt.unit: json.loads(receipt.statistics) for receipt in receipts}
    rows = [
        {"run": run, "reason": reasons.get(unit, ""), **{name: told.get(unit, {}).get(name) for name in _STATISTICS}}
        for unit in units["unit"].to_pylist()
    ]
    lacking = [unit for unit in units["unit"].to_pylist() if unit not in told and unit not in reasons]
    assert not lacking, f"units without an outcome: {lacking[:3]}"
    outcome = pa.Table.from_pylist(
        rows, schema=pa.schema([INVENTORY_SCHEMA.field(n) for n in ("run", "reason", *_STATISTICS)])
    )
    for name in outcome.column_names:
        units = units.append_column(INVENTORY_SCHEMA.field(name), outcome[name])
    return units.cast(INVENTORY_SCHEMA)


def named(units: pa.Table) -> list[str]:
    """RUN/UNIT of each unit, as `continuation` takes them."""
    return list(pc.binary_join_element_wise(units["run"], units["unit"], "/").to_pylist())
