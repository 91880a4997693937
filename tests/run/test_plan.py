"""The plan in its parts: what is written comes back whole, in order, and a lacking part is missed."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, NotFoundError
from deepshadows.run import plan as module
from deepshadows.run.plan import Draft, Plan, plan_blocks
from deepshadows.run.record import RunRecord
from deepshadows.run.units import UNIT_SCHEMA, Unit, make_unit


def units_of(count: int) -> list[Unit]:
    return [make_unit(kind="shard", url=f"s3://b/ü {n}.parquet", etag="e", size_bytes=n, rows=n) for n in range(count)]


def record_of(draft: Draft, **changes: object) -> RunRecord:
    values = {
        "run": "r", "fingerprint": "f", "inventory": "i", "plan_parts": draft.parts, "settings": {},
        "checkpoint": {}, "preprocessing": {}, "id_type": "int64", "units_planned": len(draft),
        "rows_planned": draft.rows, "versions": {},
    }  # fmt: skip
    return RunRecord.model_validate({**values, **changes})


def test_the_fingerprint_follows_settings_weights_and_inventory_but_not_order() -> None:
    units = units_of(3)
    base = Draft(units).fingerprint({"a": 1}, "sha")
    assert Draft(units[::-1]).fingerprint({"a": 1}, "sha") == base
    others = [Draft(units).fingerprint({"a": 2}, "sha"), Draft(units).fingerprint({"a": 1}, "other")]
    assert len({base, *others, Draft(units[:2]).fingerprint({"a": 1}, "sha")}) == 4


def test_a_unit_that_is_planned_twice_is_a_defect() -> None:
    with pytest.raises(Failure, match="one id"):
        Draft([*units_of(3), *units_of(1)]).fingerprint({}, "sha")


def test_the_plan_survives_its_parts(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNITS_PER_PART", 7)
    units = units_of(20)
    draft = Draft(units)
    assert list(draft) == units
    draft.write(place, "r")
    record = record_of(draft)
    assert record.plan_parts == 3
    assert list(Plan(place, record)) == units
    assert [block.num_rows for block in plan_blocks(place, record, ("unit", "rows"))] == [7, 7, 6]
    first = storage.list_objects(f"{place}/units")[0]
    assert pq.read_schema(io.BytesIO(storage.read(first.url))).equals(UNIT_SCHEMA)


def test_long_sources_end_a_part_early() -> None:
    draft = Draft(make_unit(kind="tile", url=str(n), etag="", size_bytes=1, source="x" * (20 << 20)) for n in range(4))
    assert draft.parts == 2


def test_a_part_that_is_missing_or_left_over_does_not_go_unnoticed(place: str) -> None:
    draft = Draft(units_of(5))
    draft.write(place, "r")
    with pytest.raises(InputError, match=r"5 units in units/, run\.json says 6"):
        list(Plan(place, record_of(draft, units_planned=6)))
    with pytest.raises(NotFoundError, match="r-00001"):
        list(Plan(place, record_of(draft, plan_parts=2)))
