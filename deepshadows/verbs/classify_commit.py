"""What a finished run leaves beside its scores: rejects.parquet and the manifest. Imports no Ray itself."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, StorageError
from deepshadows.run.ledger import Ledger
from deepshadows.run.manifest import (
    MOST_REASON_CHARS,
    Manifest,
    QuarantinedUnit,
    ScoreObject,
    write_quarantine_parts,
    write_score_parts,
)
from deepshadows.run.plan import plan_blocks, unit_ids
from deepshadows.run.record import RunRecord
from deepshadows.run.scores import committed, score_url
from deepshadows.run.units import Unit, UnitKind
from deepshadows.schema import Flag, id_field
from deepshadows.sky.row_groups import read_rows
from deepshadows.sky.shards import open_shard
from deepshadows.verbs.plan_detections import detections_of


def account(run: str, record: RunRecord, ledger: Ledger, driver: str, seconds: float) -> Manifest:
    """The manifest, its parts written: every planned unit by what the store holds, not by what actors said.

    Raises
    ------
    Failure
        A unit has neither a score object nor a reason.
    """
    stored = committed(run)
    stored = stored.filter(pa.array(ledger.is_done(unit_ids(stored))))
    places = ledger.places(unit_ids(stored))
    if lost := len(ledger.ids) - len(places) - len(ledger.quarantined):
        raise Failure(f"{run}: {lost} units have no score object; run the same command again to go on")
    return Manifest(
        run=record.run,
        fingerprint=record.fingerprint,
        recipe=record.recipe,
        driver=driver,
        settings=record.settings,
        checkpoint=record.checkpoint,
        preprocessing=record.preprocessing,
        engine=", ".join(sorted(ledger.engines)) or "none",
        versions=record.versions,
        id_type=record.id_type,
        units_planned=record.units_planned,
        units_done=len(places),
        units_quarantined=len(ledger.quarantined),
        rows_planned=record.rows_planned,
        rows_scored=ledger.rows_scored,
        rows_unscored=ledger.rows_done - ledger.rows_scored,
        rows_quarantined=ledger.rows_quarantined,
        flag_counts=dict(ledger.flag_counts),
        seconds=seconds,
        score_parts=write_score_parts(run, driver, _score_objects(run, stored, ledger.rows[places])),
        quarantine_parts=write_quarantine_parts(run, driver, _quarantined(run, record, ledger)),
    )


def _score_objects(run: str, stored: pa.Table, rows: NDArray[np.int64]) -> Iterator[ScoreObject]:
    for batch in stored.append_column("rows", pa.array(rows)).to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            url = storage.relative(score_url(run, row["unit"]), run)
            yield ScoreObject(url, row["size_bytes"], row["etag"], row["rows"])


def _quarantined(run: str, record: RunRecord, ledger: Ledger) -> Iterator[QuarantinedUnit]:
    for unit in _exceptions(run, record, ledger):
        if (reason := ledger.quarantined.get(unit.unit)) is not None:
            yield QuarantinedUnit(unit.unit, unit.name, unit.rows, reason[:MOST_REASON_CHARS])


def write_rejects(run: str, record: RunRecord, ledger: Ledger) -> None:
    """RUN/rejects.parquet: identifiers of detections off every tile and of quarantined units, with the reason."""
    id_type = pa.string() if record.id_type == "string" else pa.int64()
    schema = pa.schema([id_field(id_type), ("unit", pa.string()), ("reason", pa.string())])
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for unit in _exceptions(run, record, ledger):
            if (reason := ledger.quarantined.get(unit.unit)) is not None:
                ids = _identifiers(unit, id_type).cast(id_type)
                reasons = [reason] * len(ids)
            else:
                detections = detections_of(unit)
                ids = detections.object_id
                named = {flags: " ".join(Flag.names(int(flags))) for flags in np.unique(detections.flags)}
                reasons = [named[flags] for flags in detections.flags]
            columns = [ids, pa.array([unit.unit] * len(ids), pa.string()), pa.array(reasons, pa.string())]
            writer.write_table(pa.table(columns, schema=schema))
    storage.write(storage.join(run, "rejects.parquet"), sink.getvalue())


def _exceptions(run: str, record: RunRecord, ledger: Ledger) -> Iterator[Unit]:
    """Units whose rows have no place on a tile, and quarantined ones, in the order of the plan."""
    bad = pa.array(list(ledger.quarantined), pa.string())
    for block in plan_blocks(run, record):
        off_tile = pc.equal(block["kind"], UnitKind.UNPLACED.value)
        wanted = block.filter(pc.or_(off_tile, pc.is_in(block["unit"], value_set=bad)))
        yield from (Unit(**row) for row in wanted.to_pylist())


def _identifiers(unit: Unit, id_type: pa.DataType) -> pa.Array:
    """Identifiers of a quarantined unit, where they can still be read."""
    try:
        if unit.kind == UnitKind.TILE:
            return detections_of(unit).object_id
        if unit.kind == UnitKind.SHARD:
            return read_rows(open_shard(unit.url), unit.first_row, unit.rows, ["object_id"])[
                "object_id"
            ].combine_chunks()
    except (InputError, StorageError, OSError, pa.ArrowException):
        pass  # the unit is quarantined because it cannot be read: its record names object and rows
    return pa.array([], id_type)
