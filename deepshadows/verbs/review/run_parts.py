"""One run as its manifest tells it, or, where it is not finished, as its record and its store do. No Ray, no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepshadows import storage
from deepshadows.catalog.score_objects import ScoreSource
from deepshadows.outcomes import InputError
from deepshadows.run.ledger import open_ledger
from deepshadows.run.manifest import Manifest, QuarantinedUnit, quarantined_units
from deepshadows.run.plan import plan_blocks, unit_ids
from deepshadows.run.record import RunRecord, read_record
from deepshadows.run.scores import committed, quarantined, score_url
from deepshadows.run.units import Unit

ROWS = ("planned", "scored", "unscored", "quarantined")
MOST_QUARANTINED = 1000
"""Quarantined units that are looked at for their reasons."""


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """One run as its manifest tells it, or, where it is not finished, its record and its store.

    Attributes
    ----------
    rows, units : dict
        Counts by name: planned and what became of them; `left` where the run is not finished.
    quarantined : tuple of QuarantinedUnit
        The first of them.
    seconds : float or None
        Scoring time of the driver that finished the run.
    """

    url: str
    run: str
    fingerprint: str
    settings: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    engine: str
    versions: Mapping[str, str]
    rows: Mapping[str, int]
    units: Mapping[str, int]
    seconds: float | None
    quarantined: tuple[QuarantinedUnit, ...]

    @property
    def is_finished(self) -> bool:
        return "left" not in self.rows


def of_manifest(url: str, manifest: Manifest) -> RunPart:
    """A finished run."""
    return RunPart(
        **_common(url, manifest),
        engine=manifest.engine,
        rows={name: getattr(manifest, f"rows_{name}") for name in ROWS},
        units={name: getattr(manifest, f"units_{name}") for name in ("planned", "done", "quarantined")},
        seconds=manifest.seconds,
        quarantined=tuple(itertools.islice(quarantined_units(url, manifest), MOST_QUARANTINED)),
    )


def units_named(run_url: str, names: Sequence[str]) -> dict[str, Unit]:
    """Units of a run's plan, by name."""
    record = read_record(run_url)
    if record is None:
        raise InputError(f"{run_url}: its record run.json is gone")
    wanted = pa.array(names)
    found = (block.filter(pc.is_in(block["unit"], wanted)) for block in plan_blocks(run_url, record))
    return {row["unit"]: Unit(**row) for block in found for row in block.to_pylist()}


def _common(url: str, told: Manifest | RunRecord) -> dict[str, Any]:
    names = ("run", "fingerprint", "settings", "checkpoint", "preprocessing", "versions")
    return {"url": url, **{name: getattr(told, name) for name in names}}


def of_store(url: str, record: RunRecord) -> tuple[RunPart, list[ScoreSource]]:
    """An unfinished run and its score objects: what the store holds of what was planned."""
    ledger = open_ledger(url, record)
    listing = committed(url)  # after the ledger, and what is not in it left out: the run may be going on
    listing = listing.filter(pa.array(ledger.is_done(unit_ids(listing))))
    places = ledger.places(unit_ids(listing))
    waiting = {unit: at for unit, at in quarantined(url).items() if not ledger.is_done(np.array([unit], "S32")).any()}
    bad = [_quarantined(at) for _, at in sorted(waiting.items())[:MOST_QUARANTINED]]
    lost = int(ledger.rows[ledger.places(list(waiting))].sum())
    rows_done = int(ledger.rows[places].sum())
    part = RunPart(
        **_common(url, record),
        engine=", ".join(sorted(ledger.engines)) or "none",
        rows={
            "planned": record.rows_planned,
            "scored": ledger.rows_scored,
            "unscored": rows_done - ledger.rows_scored,
            "quarantined": lost,
            "left": record.rows_planned - rows_done - lost,
        },
        units={
            "planned": record.units_planned,
            "done": len(places),
            "quarantined": len(waiting),
            "left": record.units_planned - len(places) - len(waiting),
        },
        seconds=None,
        quarantined=tuple(bad),
    )
    found = zip(listing["unit"].to_pylist(), listing["size_bytes"].to_pylist(), ledger.rows[places], strict=True)
    scores = [
        ScoreSource(score_url(url, unit), size_bytes, int(rows), record.fingerprint, record.id_type)
        for unit, size_bytes, rows in found
    ]
    return part, scores


def _quarantined(url: str) -> QuarantinedUnit:
    try:
        told = json.loads(storage.read(url))
        name = f"tile {told['tile']}" if told["tile"] else told["object"]
        return QuarantinedUnit(unit=told["unit"], object=name, rows=told["rows"], reason=told["reason"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{url}: damaged record of a quarantined unit: {error!r}; delete it and classify again"
        ) from error
