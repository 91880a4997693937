"""What became of each planned unit, in some fifty bytes a unit. Vocabulary only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows.outcomes import Failure, InputError
from deepshadows.run.journal import known_receipts
from deepshadows.run.plan import plan_blocks, unit_ids
from deepshadows.run.record import RunRecord
from deepshadows.run.scores import Receipt, committed, read_receipts


@dataclass
class Ledger:
    """The books of a run: each planned unit once, done or quarantined or neither yet.

    Attributes
    ----------
    ids : S32 (N,)
        Planned units, sorted.
    rows : int64 (N,)
        Rows of each.
    done : bool (N,)
        Committed.
    quarantined : dict
        Units that could not be read, with the reason.
    """

    ids: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    done: NDArray[np.bool_]
    quarantined: dict[str, str] = field(default_factory=dict)
    rows_scored: int = 0
    flag_counts: Counter[str] = field(default_factory=Counter)
    engines: set[str] = field(default_factory=set)

    @property
    def units_open(self) -> int:
        return len(self.ids) - int(self.done.sum()) - len(self.quarantined)

    @property
    def rows_done(self) -> int:
        return int(self.rows[self.done].sum())

    @property
    def rows_quarantined(self) -> int:
        return int(self.rows[self.places(list(self.quarantined))].sum())

    def places(self, units: list[str] | NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Where units stand in `ids`, shape (N,), -1 for those that are not planned."""
        wanted = np.asarray(units, dtype="S32")
        if not len(self.ids):
            return np.full(len(wanted), -1)
        place = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[place] == wanted, place, -1)

    def is_done(self, units: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """True for planned units that are committed, shape (N,)."""
        places = self.places(units)
        return np.asarray((places >= 0) & self.done[places]) if len(self.ids) else np.zeros(len(units), bool)

    def note(self, receipt: Receipt) -> bool:
        """Write one receipt down; False for one that was there already.

        Raises
        ------
        Failure
            It is of no planned unit, or of other rows.
        """
        (place,) = self.places([receipt.unit])
        if place < 0 or self.rows[place] != receipt.rows:
            raise Failure(f"unit {receipt.unit}: nobody planned a unit of {receipt.rows} rows: a defect of DeepShadows")
        if self.done[place]:
            return False
        if receipt.quarantined:
            self.quarantined[receipt.unit] = receipt.reason
            return True
        self.quarantined.pop(receipt.unit, None)
        self.done[place] = True
        self.rows_scored += receipt.scored
        self.flag_counts.update(json.loads(receipt.flag_counts))
        self.engines.add(receipt.engine)
        return True


def open_ledger(run: str, record: RunRecord) -> Ledger:
    """The ledger of a planned run with what earlier drivers committed: from the listing and the journal, and from the
    footers of those score objects that the journal does not know.

    Raises
    ------
    InputError
        The plan or a score object is damaged, or belongs to another run.
    """
    ledger = planned_ledger(run, record)
    listing = committed(run)
    listing = listing.filter(pa.array(ledger.places(unit_ids(listing)) >= 0))
    known = known_receipts(run, record.fingerprint, listing)
    places = ledger.places(unit_ids(known))
    if (ledger.rows[places] != known["rows"].to_numpy()).any():
        raise InputError(f"{run}/journal: rows that the plan does not have; delete that folder and start again")
    ledger.done[places] = True
    ledger.rows_scored = pc.sum(known["scored"]).as_py() or 0
    ledger.engines.update(pc.unique(known["engine"]).to_pylist())
    for counted in pc.value_counts(known["flag_counts"]).to_pylist():
        counts = json.loads(counted["values"])
        ledger.flag_counts.update({flag: rows * counted["counts"] for flag, rows in counts.items()})
    unknown = listing.filter(pa.array(~ledger.is_done(unit_ids(listing))))
    for receipt in read_receipts(run, unknown["unit"].to_pylist(), record.fingerprint):
        ledger.note(receipt)
    return ledger


def planned_ledger(run: str, record: RunRecord) -> Ledger:
    """The ledger of a run of which nothing is done."""
    blocks = [(unit_ids(block), block["rows"].to_numpy()) for block in plan_blocks(run, record, ("unit", "rows"))]
    ids = np.concatenate([np.empty(0, "S32"), *(ids for ids, _ in blocks)])
    rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in blocks)])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if (ids[1:] == ids[:-1]).any():
        raise InputError(f"{run}/units: a unit is planned twice; classify again into a new run")
    return Ledger(ids, rows[order], np.zeros(len(ids), bool))


def open_units(run: str, record: RunRecord, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Units that are not done, in the order of the plan, as the fields of `Unit`; quarantined ones are tried again."""
    for block in plan_blocks(run, record):
        wanted = block.filter(pa.array(~ledger.is_done(unit_ids(block))))
        for batch in wanted.to_batches(max_chunksize=1_000):
            yield from batch.to_pylist()
