"""How a version differs from the one before: objects new, gone, and across the threshold. Tables in; no Ray, no torch.

Objects are compared within a partition: one that moved to another part of the sky counts as gone there and new here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows.schema import DEC, RA, Flag, id_field

FOLDER = "changes"
SHIFT_EDGES = np.linspace(-1.0, 1.0, 41)
"""Of the histogram of p_lsbg now minus p_lsbg before."""
COMPARED = ["object_id", "ra", "dec", "p_lsbg", "flags"]
"""Columns that a comparison needs."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Counts over objects.

    Attributes
    ----------
    new, gone : int
        Only in this version, only in the one before; `new_above` and `gone_above` of them count as LSBGs.
    up, down : int
        In both, and across the threshold; an object without a score lies below it.
    unchanged, rescored : int
        Of the objects in both: same p_lsbg (or none), another p_lsbg (or one of the two has none).
    shifts : int64 (40,)
        Objects with another p_lsbg, by p now minus p before; see SHIFT_EDGES.
    """

    new: int = 0
    new_above: int = 0
    gone: int = 0
    gone_above: int = 0
    up: int = 0
    down: int = 0
    unchanged: int = 0
    rescored: int = 0
    shifts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SHIFT_EDGES) - 1, np.int64))

    def __add__(self, other: Changes) -> Changes:
        return Changes(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "shifts": self.shifts.tolist(), "shift_edges": SHIFT_EDGES.round(3).tolist()}


def changed_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of the objects that changed side; `change` is up, down, new or gone."""
    scores = [("p_lsbg_before", pa.float32()), ("p_lsbg", pa.float32())]
    return pa.schema([id_field(id_type), RA, DEC, *scores, ("change", pa.string())])


def compare(before: pa.Table, now: pa.Table, threshold: float) -> tuple[Changes, pa.Table]:
    """Counts, and the objects that are on the other side of `threshold` now.

    Parameters
    ----------
    before, now : pa.Table
        With the columns COMPARED; rows that repeat an object within its unit do not take part.
    """
    before, now = _first_rows(before), _first_rows(now)
    match = pc.index_in(now["object_id"].combine_chunks(), value_set=before["object_id"].combine_chunks())
    present = np.asarray(match.is_valid())
    matched = match.drop_null().to_numpy()
    gone = np.ones(before.num_rows, dtype=bool)
    gone[matched] = False
    p_now, p_before = (table["p_lsbg"].to_numpy().astype(np.float32) for table in (now, before))  # NaN where null
    above_now, above_before = p_now >= threshold, p_before >= threshold
    was_above = np.zeros(now.num_rows, dtype=bool)
    was_above[present] = above_before[matched]
    up, down = present & above_now & ~was_above, present & was_above & ~above_now
    shift = p_now[present].astype(np.float64) - p_before[matched]
    same = (shift == 0) | (np.isnan(p_now[present]) & np.isnan(p_before[matched]))
    changes = Changes(
        new=int((~present).sum()),
        new_above=int((~present & above_now).sum()),
        gone=int(gone.sum()),
        gone_above=int((gone & above_before).sum()),
        up=int(up.sum()),
        down=int(down.sum()),
        unchanged=int(same.sum()),
        rescored=int((~same).sum()),
        shifts=np.histogram(shift[~same & np.isfinite(shift)], SHIFT_EDGES)[0].astype(np.int64),
    )
    p_matched = np.full(now.num_rows, np.nan, np.float32)
    p_matched[present] = p_before[matched]
    parts = [
        _changed(now, rows, p_matched, p_now, name)
        for name, rows in (("up", up), ("down", down), ("new", ~present & above_now))
    ]
    nothing = np.full(before.num_rows, np.nan, np.float32)
    parts.append(_changed(before, gone & above_before, p_before, nothing, "gone"))
    return changes, pa.concat_tables(parts)


def _first_rows(table: pa.Table) -> pa.Table:
    repeated = (table["flags"].to_numpy() & Flag.DUPLICATE_ID.bit) != 0
    return table.filter(pa.array(~repeated)) if repeated.any() else table


def _changed(
    table: pa.Table,
    rows: NDArray[np.bool_],
    p_before: NDArray[np.float32],
    p_now: NDArray[np.float32],
    change: str,
) -> pa.Table:
    chosen = table.select(["object_id", "ra", "dec"]).filter(pa.array(rows))
    columns = [
        *chosen.columns,
        pa.array(p_before[rows], from_pandas=True),
        pa.array(p_now[rows], from_pandas=True),
        pa.array([change] * chosen.num_rows, pa.string()),
    ]
    return pa.table(columns, schema=changed_schema(chosen.schema.field("object_id").type))
