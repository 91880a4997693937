"""What changed between two versions of a partition, by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from deepshadows.catalog.changes import Changes, compare
from deepshadows.schema import Flag


def version(scores: dict[int, float | None], repeated: dict[int, float] | None = None) -> pa.Table:
    """Objects and their p_lsbg; `repeated` are rows flagged as repeats within a unit."""
    both = [*scores.items(), *(repeated or {}).items()]
    flags = [0] * len(scores) + [Flag.DUPLICATE_ID.bit] * len(repeated or {})
    return pa.table(
        {
            "object_id": pa.array([key for key, _ in both], pa.int64()),
            "ra": np.arange(len(both), dtype=np.float64),
            "dec": np.zeros(len(both)),
            "p_lsbg": pa.array([value for _, value in both], pa.float32()),
            "flags": pa.array(flags, pa.int32()),
        }
    )


def test_each_object_is_counted_once() -> None:
    before = version({1: 0.2, 2: 0.8, 3: 0.8, 4: 0.1, 5: None, 6: 0.9, 7: None, 8: 0.3}, {8: 0.99})
    now = version({1: 0.7, 2: 0.4, 3: 0.8, 5: 0.6, 7: None, 8: 0.25, 9: 0.95, 10: 0.05}, {1: 0.0})
    changes, moved = compare(before, now, threshold=0.5)
    counts = {name: value for name, value in vars(changes).items() if name != "shifts"}
    assert counts == {
        "new": 2, "new_above": 1, "gone": 2, "gone_above": 1, "up": 2, "down": 1, "unchanged": 2, "rescored": 4,
    }  # fmt: skip
    assert changes.shifts.sum() == 3, "those with a score in both: 1, 2 and 8"
    rows = {row["object_id"]: row["change"] for row in moved.to_pylist()}
    assert rows == {1: "up", 5: "up", 2: "down", 9: "new", 6: "gone"}
    five = next(row for row in moved.to_pylist() if row["object_id"] == 5)
    assert (five["p_lsbg_before"], round(five["p_lsbg"], 3)) == (None, 0.6)


def test_counts_add_up_over_partitions() -> None:
    one, _ = compare(version({1: 0.1}), version({1: 0.9}), 0.5)
    total = one + one + Changes(unchanged=5)
    assert (total.up, total.unchanged, int(total.shifts.sum())) == (2, 5, 2)
    assert total.to_json()["shift_edges"][0] == -1.0


def test_nothing_before_or_nothing_now() -> None:
    nothing = version({})
    assert compare(nothing, version({1: 0.9, 2: 0.1}), 0.5)[0].new == 2
    assert compare(version({1: 0.9}), nothing, 0.5)[0].gone_above == 1
    assert compare(nothing, nothing, 0.5)[1].num_rows == 0
