"""How far a run has come, read from its store alone: plan, score objects, quarantine, lease. Vocabulary only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import UsageError
from deepshadows.run.lease import is_driven
from deepshadows.run.ledger import planned_ledger
from deepshadows.run.manifest import manifest_url
from deepshadows.run.plan import unit_ids
from deepshadows.run.record import read_record
from deepshadows.run.scores import committed, quarantined

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
    ledger = planned_ledger(run, record)
    done = committed(run)
    places = ledger.places(unit_ids(done))
    modified_s, places = done["modified_s"].to_numpy()[places >= 0], places[places >= 0]
    ledger.done[places] = True
    bad = ledger.places(list(quarantined(run)))
    bad = bad[(bad >= 0) & ~ledger.done[bad]]
    driven = is_driven(run)
    finished = storage.exists(manifest_url(run))  # looked for last: a driver may have finished meanwhile
    return Standing(
        state="finished" if finished else "running" if driven else "stopped",
        units_planned=record.units_planned,
        units_done=len(places),
        units_quarantined=len(bad),
        rows_planned=record.rows_planned,
        rows_done=ledger.rows_done,
        rows_quarantined=int(ledger.rows[bad].sum()),
        images_per_s=_rate(modified_s, ledger.rows[places]),
    )


def _rate(modified_s: NDArray[np.float64], rows: NDArray[np.int64]) -> float | None:
    """Rows a second between the first and the last score object of the window; the first began before it."""
    recent = modified_s >= modified_s.max(initial=0.0) - RATE_WINDOW_S
    modified_s, rows = modified_s[recent], rows[recent]
    if not len(rows) or modified_s.max() == modified_s.min():
        return None
    return float((rows.sum() - rows[modified_s.argmin()]) / (modified_s.max() - modified_s.min()))
