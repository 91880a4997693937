"""Units: every row in exactly one, ids that follow the content, a plan that survives its files."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.run.units import UNIT_SCHEMA, Unit, UnitKind, fingerprint, make_unit, shard_units, write_plan
from deepshadows.storage import StoredObject

SHARD = StoredObject("/data/a.parquet", 1000, '"abc"')


@given(st.lists(st.integers(1, 2000), max_size=40), st.integers(1, 5000))
def test_units_cover_every_row_once(groups: list[int], unit_rows: int) -> None:
    units = list(shard_units(SHARD, sum(groups), unit_rows, groups))
    assert [unit.first_row for unit in units] == [sum(unit.rows for unit in units[:n]) for n in range(len(units))]
    assert sum(unit.rows for unit in units) == sum(groups)
    assert all(0 < unit.rows <= max(unit_rows, *groups) for unit in units)
    assert len({unit.unit for unit in units}) == len(units)


def test_a_footer_that_lies_is_refused() -> None:
    with pytest.raises(InputError, match="hold 10 rows, its footer says 11"):
        list(shard_units(SHARD, 11, 100, [10]))


def test_the_id_follows_the_content() -> None:
    def of(etag: str, first_row: int = 0) -> str:
        return make_unit(
            kind=UnitKind.SHARD.value, url="/a", etag=etag, size_bytes=1, first_row=first_row, rows=10
        ).unit

    assert of("1") == of("1")
    assert len({of("1"), of("2"), of("1", 10)}) == 3
    first = make_unit(content="x", kind="tile", url="/run1/d", etag="", size_bytes=1, rows=1, tile="T")
    second = make_unit(content="x", kind="tile", url="/run2/d", etag="", size_bytes=1, first_row=7, rows=1, tile="T")
    assert first.unit == second.unit, "where a run keeps its copy of the detections does not matter"


def test_the_fingerprint_follows_settings_weights_and_inventory_but_not_order() -> None:
    units = [make_unit(kind="shard", url=f"/{n}", etag="", size_bytes=1) for n in range(3)]
    base = fingerprint({"a": 1}, "sha", units)
    assert fingerprint({"a": 1}, "sha", units[::-1]) == base
    assert len({base, fingerprint({"a": 2}, "sha", units), fingerprint({"a": 1}, "other", units)}) == 3
    assert fingerprint({"a": 1}, "sha", units[:2]) != base


def test_the_plan_survives_its_files(place: str) -> None:
    units = [make_unit(kind="shard", url=f"s3://b/ü {n}.parquet", etag="e", size_bytes=n, rows=n) for n in range(20)]
    write_plan(place, "a", units)
    write_plan(place, "b", units[:3])
    (entry,) = [entry for entry in storage.list_objects(f"{place}/units") if storage.name_of(entry.url)[0] == "a"]
    table = pq.read_table(io.BytesIO(storage.read(entry.url)))
    assert table.schema.equals(UNIT_SCHEMA)
    assert [Unit(**row) for row in table.to_pylist()] == units
