"""Units: every row in exactly one, ids that follow the content, a size that is set or derived."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.outcomes import InputError
from deepshadows.run.units import UnitKind, make_unit, shard_units, unit_size_rows
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


def test_the_size_of_a_unit_is_what_is_set_or_twenty_thousand_until_that_makes_a_million() -> None:
    assert unit_size_rows(None, None, 10**10) == 20_000
    assert unit_size_rows(None, None, 10**11) == 100_000
    assert unit_size_rows(None, None, 10**10, 100_000) == 100_000
    assert unit_size_rows(300, None, 10**11) == 300
    assert unit_size_rows(None, 12, 10**11) == 1024
    assert unit_size_rows(300, 12, 0) == 300
