"""Units of detections: each detection in exactly one, with the tile where it lies deepest, however the table is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows.model.card import Card
from deepshadows.outcomes import InputError, UsageError
from deepshadows.run.units import Unit, UnitKind
from deepshadows.schema import Flag
from deepshadows.settings import Classify
from deepshadows.sky.tile_index import TileIndex
from deepshadows.sky.tiles import TileFiles
from deepshadows.verbs import plan_detections
from deepshadows.verbs.plan_detections import check_detections, detections_of, group_by_tile, own_detections, tile_units
from tests.sky.test_footprints import depths, on_sky, source_of

CARD = Card(name="none")


def index_at(ra: float, dec: float, places: list[tuple[float, float]]) -> TileIndex:
    """Tiles some pixels from a place; they overlap."""
    sources = [source_of(*on_sky(ra, dec, east, north)) for east, north in places]
    return TileIndex(tuple(TileFiles(f"T{n}", dict.fromkeys("grz", source)) for n, source in enumerate(sources)))


def units_of(folder: Path, table: pa.Table, index: TileIndex, unit_rows: int, block_rows: int = 10**6) -> list[Unit]:
    for name in ("scratch", "run"):
        (folder / name).mkdir(parents=True)
    pq.write_table(table, folder / "d.parquet", row_group_size=7)
    wanted = Classify(input="unused", detections=str(folder / "d.parquet"), output=str(folder / "run"))
    groups = group_by_tile(wanted, index, folder / "scratch", block_rows)
    pieces = tile_units(groups, index, CARD, unit_rows)
    return list(own_detections(pieces, str(folder / "run"), unit_rows, keep=True))


@settings(max_examples=30, deadline=None)
@given(
    ra=st.sampled_from([0.0, 359.9999, 30.0]),
    dec=st.sampled_from([-30.0, 0.0, 89.999, -90.0]),
    places=st.lists(st.tuples(st.floats(-150, 150), st.floats(-150, 150)), min_size=1, max_size=5),
    points=st.lists(st.tuples(st.floats(-250, 250), st.floats(-250, 250)), max_size=60),
    strings=st.booleans(),
    unit_rows=st.integers(1, 25),
    block_rows=st.integers(1, 25),
    part_rows=st.integers(1, 40),
)
def test_each_detection_is_in_one_unit_with_the_tile_where_it_lies_deepest(
    tmp_path_factory: pytest.TempPathFactory,
    ra: float,
    dec: float,
    places: list[tuple[float, float]],
    points: list[tuple[float, float]],
    strings: bool,
    unit_rows: int,
    block_rows: int,
    part_rows: int,
) -> None:
    index = index_at(ra, dec, places)
    count = len(points) + 2
    at = [*(on_sky(ra, dec, *point) for point in points), (np.nan, 1.0), (10.0, 95.0)]
    at_ra, at_dec = np.array(at).T
    ids: list[Any] = [f"id {n}" if strings else n * 10 for n in range(count)]
    id_type = pa.string() if strings else pa.int64()
    table = pa.table({"object_id": pa.array(ids, id_type), "ra": at_ra, "dec": at_dec})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_detections, "PART_ROWS", part_rows)
        units = units_of(tmp_path_factory.mktemp("cut"), table, index, unit_rows, block_rows)
    whole = units_of(tmp_path_factory.mktemp("whole"), table, index, unit_rows)
    assert [unit.unit for unit in units] == [unit.unit for unit in whole], "names follow the content alone"
    assert len({unit.unit for unit in units}) == len(units)
    owner: dict[Any, str] = {}
    for unit in units:
        rows = detections_of(unit)
        assert 0 < len(rows) == unit.rows <= unit_rows
        assert (unit.kind == UnitKind.TILE) == bool(unit.tile)
        for number, object_id in enumerate(rows.object_id.to_pylist()):
            assert object_id not in owner
            owner[object_id] = unit.tile
            row = ids.index(object_id)
            assert np.array_equal([rows.ra[number], rows.dec[number]], [at_ra[row], at_dec[row]], equal_nan=True)
            flag = 0 if unit.tile else Flag.BAD_POSITION.bit if row >= len(points) else Flag.OFF_TILE.bit
            assert rows.flags[number] == flag
    assert sorted(owner) == sorted(ids)
    if points:
        deep = depths([tile.reference for tile in index.tiles], at_ra[: len(points)], at_dec[: len(points)])
        for row in range(len(points)):
            best = deep[:, row].max()
            held = owner[ids[row]]
            if abs(best) > 1e-6:
                assert bool(held) == (best > 0)
            if held:
                assert deep[int(held[1:]), row] == pytest.approx(best, abs=1e-6)


def test_rows_keep_the_order_of_the_input_within_a_tile(tmp_path: Path) -> None:
    index = index_at(30.0, -30.0, [(0.0, 0.0)])
    rng = np.random.default_rng(1)
    at = np.array([on_sky(30.0, -30.0, *rng.uniform(-20, 20, 2)) for _ in range(100)])
    table = pa.table({"object_id": np.arange(100)[::-1], "ra": at[:, 0], "dec": at[:, 1]})
    units = units_of(tmp_path, table, index, 30)
    ids = [object_id for unit in units for object_id in detections_of(unit).object_id.to_pylist()]
    assert ids == list(range(100))[::-1]
    assert [unit.rows for unit in units] == [30, 30, 30, 10]


def test_identifiers_of_two_kinds_in_one_folder_are_refused(tmp_path: Path) -> None:
    index = index_at(30.0, -30.0, [(0.0, 0.0)])
    (tmp_path / "in").mkdir()
    for name, ids in (("a", [1]), ("b", ["x"])):
        pq.write_table(pa.table({"object_id": ids, "ra": [30.0], "dec": [-30.0]}), tmp_path / "in" / f"{name}.parquet")
    wanted = Classify(input="unused", detections=str(tmp_path / "in"), output="unused")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(InputError, match="object_id is string here and int64 before"):
        group_by_tile(wanted, index, tmp_path / "scratch")


def test_a_field_that_tiles_are_not_cut_to_is_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "d.parquet")
    pq.write_table(pa.table({"object_id": [1], "ra": [30.0], "dec": [-30.0]}), url)
    check_detections(Classify(input="unused", detections=url, output="unused"))
    with pytest.raises(UsageError, match=r"--fov-arcsec 21\.5: it is for shards"):
        check_detections(Classify(input="unused", detections=url, output="unused", fov_arcsec=21.5))


def test_a_table_without_rows_has_no_units(tmp_path: Path) -> None:
    table = pa.schema([("object_id", pa.string()), ("ra", pa.float64()), ("dec", pa.float64())]).empty_table()
    assert units_of(tmp_path, table, index_at(30.0, -30.0, [(0.0, 0.0)]), 10) == []
