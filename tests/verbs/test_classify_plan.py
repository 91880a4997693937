"""The plan of `classify`: which units a change of the input touches, and what was scored earlier."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from deepshadows.model.card import Card
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import InputError, UsageError
from deepshadows.run.units import Unit, UnitKind
from deepshadows.settings import Classify
from deepshadows.sky.cutouts import METHOD
from deepshadows.verbs.classify_plan import Earlier, Planned, plan, scoring_recipe
from deepshadows.verbs.plan_detections import detections_of
from deepshadows.verbs.unit_scoring import score_unit
from tests.sky.test_shards import cutouts_of
from tests.sky.tile_files import noise, tan_wcs, write_band, write_tile
from tests.verbs.test_classify import write_shards


def planned(folder: Path, run: str, checkpoint: str, earlier: Earlier | None = None, **flags: Any) -> Planned:
    settings = Classify(input=str(folder / "in"), checkpoint=checkpoint, output=str(folder / run), **flags)
    return plan(settings, settings.output, earlier)


def names(units: Iterable[Unit]) -> set[str]:
    return {unit.unit for unit in units}


def test_detections_added_on_one_tile_leave_the_units_of_the_others(checkpoint: str, tmp_path: Path) -> None:
    for name, ra in (("A", 30.0), ("B", 30.4)):
        write_tile(tmp_path / "in", name, ra=ra)
    ra = [30.0, 30.4, 120.0, 200.0, 30.0]
    dec = [-30.0, -30.0, 10.0, 60.0, -95.0]

    def with_detections(run: str, more: list[tuple[float, float]], earlier: Earlier | None = None) -> Planned:
        all_ra, all_dec = ([*values, *(at[axis] for at in more)] for axis, values in enumerate((ra, dec)))
        table = {"object_id": list(range(len(all_ra))), "ra": all_ra, "dec": np.array(all_dec)}
        pq.write_table(pa.table(table), tmp_path / "d.parquet")
        return planned(tmp_path, run, checkpoint, earlier, detections=str(tmp_path / "d.parquet"))

    before = with_detections("run1", [])
    assert sorted(unit.kind for unit in before.units) == ["tile"] * 2 + ["unplaced"] * 3
    earlier = Earlier(units=names(before.units))
    after = with_detections("run2", [(30.001, -30.0), (120.01, 10.0)], earlier)
    changed = {(unit.kind, unit.tile, unit.rows) for unit in after.units}
    assert changed == {("tile", "A", 2), ("unplaced", "", 2)}
    assert len(after.present) == 5
    assert sorted(detections_of(unit).object_id.to_pylist() for unit in after.units) == [[0, 5], [2, 6]]
    assert after.record.rows_planned == 4


def test_a_shard_that_has_not_changed_is_not_opened(checkpoint: str, tmp_path: Path) -> None:
    write_shards(str(tmp_path / "in"), cutouts_of(60, labelled=False), 20)
    before = planned(tmp_path, "run1", checkpoint)
    known = {(unit.url, unit.etag, unit.size_bytes): [unit] for unit in before.units}
    for path in (tmp_path / "in").iterdir():
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its etag says that nothing has changed
    (tmp_path / "in" / "001.parquet").unlink()
    write_shards(str(tmp_path / "more"), cutouts_of(30, labelled=False), 30)
    (tmp_path / "more" / "000.parquet").rename(tmp_path / "in" / "001.parquet")
    after = planned(tmp_path, "run2", checkpoint, Earlier(units=names(before.units), shards=known, id_type="int64"))
    assert [(unit.kind, unit.rows) for unit in after.units] == [(UnitKind.SHARD, 30)]
    assert len(after.present) == 3


def test_a_run_whose_input_lists_as_before_is_not_planned_again(checkpoint: str, tmp_path: Path) -> None:
    write_shards(str(tmp_path / "in"), cutouts_of(40, labelled=False), 20)
    before = planned(tmp_path, "run", checkpoint)
    shard = tmp_path / "in" / "000.parquet"
    whole, stat = shard.read_bytes(), shard.stat()
    shard.write_bytes(bytes(stat.st_size))
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = planned(tmp_path, "run", checkpoint, threads=1, retries=0)
    assert again.record == before.record
    assert list(again.units) == list(before.units)
    shard.write_bytes(whole)  # a new etag: it is planned again, and is another run
    with pytest.raises(UsageError, match="belongs to another run"):
        planned(tmp_path, "run", checkpoint)


def test_a_card_that_states_its_resampling_makes_no_other_run() -> None:
    """Cards did not always state it."""
    recipe = scoring_recipe(Classify(input="in", output="run"), Card(name="test"))
    assert recipe == "8c1344820375498278255dac5b2c933d6dca995596da099a8ee73e754629e0dd"


def test_detections_that_were_only_copied_are_the_same_run(checkpoint: str, tmp_path: Path) -> None:
    write_tile(tmp_path / "in", "A")
    table = pa.table({"object_id": [1, 2], "ra": [30.0, 100.0], "dec": [-30.0, 0.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=1)
    runs = [planned(tmp_path, "run", checkpoint, detections=str(tmp_path / f"{name}.parquet")) for name in "ab"]
    assert runs[0].record == runs[1].record
    assert len(list((tmp_path / "run" / "detections").iterdir())) == 1


def test_the_field_that_the_network_is_fed_is_recorded(checkpoint: str, tmp_path: Path) -> None:
    usual = {"method": METHOD, "stretch": "des-1", "fov_arcsec": 33.5, "bands": ["z", "r", "g"]}
    records = {}
    for fov_arcsec in (33.5, 21.5):
        folder = tmp_path / str(fov_arcsec)
        write_shards(str(folder / "in"), replace(cutouts_of(10, labelled=False), fov_arcsec=fov_arcsec), 10)
        wanted = {} if fov_arcsec == 33.5 else {"fov_arcsec": fov_arcsec}
        records[fov_arcsec] = planned(folder, "run", checkpoint, **wanted).record
        assert records[fov_arcsec].preprocessing == {**usual, "fov_arcsec": fov_arcsec}
    assert records[33.5].recipe != records[21.5].recipe


def test_a_tile_with_a_damaged_band_cannot_be_scored_whatever_its_header_calls_it(
    checkpoint: str, tmp_path: Path
) -> None:
    for band in "grz":
        path = tmp_path / "in" / f"DES0219-0541_r2590p01_{band}.fits"
        write_band(path, noise((60, 60), 1), wcs=tan_wcs((60, 60)), band=band)
        fits.setval(path, "TILENAME", value="DES0219-0541", ext=1)
    path.write_bytes(b"no FITS")
    pq.write_table(pa.table({"object_id": [1], "ra": [30.0], "dec": [-30.0]}), tmp_path / "d.parquet")
    units = {
        unit.kind: unit for unit in planned(tmp_path, "run", checkpoint, detections=str(tmp_path / "d.parquet")).units
    }
    assert set(units) == {UnitKind.TILE, UnitKind.UNREADABLE}
    settings = Classify(input="unused", checkpoint=checkpoint, output="unused")
    with pytest.raises(InputError, match=r"r2590p01_z\.fits"):
        score_unit(units[UnitKind.TILE.value], load_scorer(checkpoint, precision="exact"), settings, "run")
