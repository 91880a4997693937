"""How far a run has come, read from its store alone: plan, score objects, quarantine, lease. Vocabulary only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deepshadows import storage
from deepshadows.outcomes import UsageError
from deepshadows.run.lease import is_driven
from deepshadows.run.manifest import manifest_url
from deepshadows.run.record import read_record
from deepshadows.run.scores import committed, quarantined
from deepshadows.run.units import planned_rows

RATE_WINDOW_S = 600.0
"""The rate is that of the ten minutes before the newest score object."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands: planned = done + quarantined + left, in units and in rows.

    Attributes
    ----------
    state : str
        "finished", "running" (a driver's heart beats) or "stopped".
    images_per_s : float or None
        By the store's own times of the score objects; None where these tell nothing.
    """

    state: str
    units_planned: int
    units_done: int
    units_quarantined: int
    rows_planned: int
    rows_done: int
    rows_quarantined: int
    images_per_s: float | None

    @property
    def units_left(self) -> int:
        return self.units_planned - self.units_done - self.units_quarantined

    @property
    def rows_left(self) -> int:
        return self.rows_planned - self.rows_done - self.rows_quarantined


def standing(run: str) -> Standing:
    """Where a run stands now.

    Raises
    ------
    UsageError
        No run was begun there.
    """
    record = read_record(run)
    if record is None:
        raise UsageError(f"{run}: no run there (no run.json); `deepshadows classify --output {run}` begins one")
    rows = planned_rows(run, record.run)
    done = {unit: entry for unit, entry in committed(run).items() if unit in rows}
    bad = [unit for unit in quarantined(run) if unit in rows and unit not in done]
    driven = is_driven(run)
    finished = storage.exists(manifest_url(run))  # looked for last: a driver may have finished meanwhile
    return Standing(
        state="finished" if finished else "running" if driven else "stopped",
        units_planned=record.units_planned,
        units_done=len(done),
        units_quarantined=len(bad),
        rows_planned=record.rows_planned,
        rows_done=_rows(done, rows),
        rows_quarantined=_rows(bad, rows),
        images_per_s=_rate(done, rows),
    )


def _rows(units: Collection[str], rows: Mapping[str, int]) -> int:
    return sum(rows[unit] for unit in units)


def _rate(done: Mapping[str, storage.StoredObject], rows: Mapping[str, int]) -> float | None:
    """Rows a second between the first and the last score object of the window; the first began before it."""
    newest = max((entry.modified_s for entry in done.values()), default=0.0)
    recent = sorted((entry.modified_s, unit) for unit, entry in done.items())
    recent = [(at, unit) for at, unit in recent if at >= newest - RATE_WINDOW_S]
    if not recent or newest == recent[0][0]:
        return None
    return _rows([unit for _, unit in recent[1:]], rows) / (newest - recent[0][0])
