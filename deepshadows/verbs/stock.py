"""The inventory of a version that is to be: its units, who scored them, what their rows look like. No Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from deepshadows.catalog.inventory import INVENTORY_SCHEMA, Inventory, InventorySummary
from deepshadows.catalog.statistics import STATISTICS_SCHEMA
from deepshadows.run.manifest import Manifest, quarantined_units
from deepshadows.run.plan import Plan
from deepshadows.run.record import RunRecord, read_record
from deepshadows.run.scores import Receipt, read_receipts
from deepshadows.run.units import Unit
from deepshadows.verbs.classify_plan import Planned

_OF_UNITS = ("unit", "kind", "url", "etag", "size_bytes", "first_row", "rows", "tile")
_STATISTICS = [name for name in STATISTICS_SCHEMA.names if name != "rows"]


def stock_of_run(run: str, manifest: Manifest) -> Inventory | None:
    """The inventory of a version that is made of a finished run alone; None where the run has no plan to tell."""
    record = read_record(run)
    return _stock(run, record, manifest, Plan(run, record), None) if record else None


def stock_of_runs(found: Sequence[Inventory | None]) -> Inventory | None:
    """That of a version made of several runs; without a recipe where theirs differ: nothing can be built on it."""
    known = [stock for stock in found if stock is not None]
    if len(known) < len(found):
        return None
    first = known[0].summary
    summary = InventorySummary(
        recipe=first.recipe if len({stock.summary.recipe for stock in known}) == 1 else "",
        id_type=first.id_type,
        checkpoint=first.checkpoint,
        runs={run: facts for stock in known for run, facts in stock.summary.runs.items()},
    )
    return Inventory(summary, pa.concat_tables([stock.units for stock in known]).sort_by("unit"))


def take_stock(planned: Planned, run: str, manifest: Manifest | None, known: Inventory | None) -> Inventory:
    """All units of the input: those of `known` as they are there, the others as the run of `planned` left them.

    `manifest` is None where the run had nothing to do.
    """
    return _stock(run, planned.record, manifest, planned.present, known)


def _stock(
    run: str, record: RunRecord, manifest: Manifest | None, units: Iterable[Unit], known: Inventory | None
) -> Inventory:
    present = _table(units)
    earlier = known.scored if known else INVENTORY_SCHEMA.empty_table()
    place = pc.index_in(present["unit"], value_set=earlier["unit"].combine_chunks())
    fresh = present.filter(pc.is_null(place))
    reasons = {unit.unit: unit.reason for unit in quarantined_units(run, manifest)} if manifest else {}
    scored = [unit for unit in fresh["unit"].to_pylist() if unit not in reasons]
    fresh = _with_outcome(fresh, record.run, read_receipts(run, scored, record.fingerprint), reasons)
    engine = manifest.engine if manifest else ""
    stock = pa.concat_tables([earlier.take(pc.drop_null(place)), fresh]).sort_by("unit")
    runs = {**(known.summary.runs if known else {}), record.run: {"engine": engine, "versions": record.versions}}
    named = set(pc.unique(stock["run"]).to_pylist())
    summary = InventorySummary(
        recipe=record.recipe,
        id_type=record.id_type,
        checkpoint=record.checkpoint,
        runs={run: facts for run, facts in runs.items() if run in named},
    )
    return Inventory(summary, stock)


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
    outcome = pa.Table.from_pylist(
        rows, schema=pa.schema([INVENTORY_SCHEMA.field(n) for n in ("run", "reason", *_STATISTICS)])
    )
    for name in outcome.column_names:
        units = units.append_column(INVENTORY_SCHEMA.field(name), outcome[name])
    return units.cast(INVENTORY_SCHEMA)


def named(units: pa.Table) -> list[str]:
    """RUN/UNIT of each unit, as `continuation` takes them."""
    return list(pc.binary_join_element_wise(units["run"], units["unit"], "/").to_pylist())
