"""`cutouts` on a real local Ray: tiles or npz to shards, each row written, or counted with its reason."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from deepshadows import settings, storage
from deepshadows.outcomes import ExitCode, InputError, StorageError, Summary, UsageError
from deepshadows.schema import Flag
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.shards import Cutouts, list_shards, read_shards, shard_name
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile
from deepshadows.verbs import cutouts
from tests.sky.test_shards import cutouts_of, same
from tests.sky.tile_files import noise, tan_wcs, write_band, write_tile

pytestmark = pytest.mark.usefixtures("ray_local")

SHAPE = (300, 320)
ARCSEC = 1 / 3600


def run(source: str, output: str, **flags: Any) -> Summary:
    return cutouts.run(settings.Cutouts(input=source, output=output, **flags))


def balanced(summary: Summary) -> bool:
    """Whether every planned row is accounted for."""
    ends = ("written", "rejected", "ambiguous", "unmatched", "quarantined")
    return bool(summary.figures["rows_planned"] == sum(summary.figures[f"rows_{end}"] for end in ends))


def put_npz(url: str, wanted: Cutouts, **more: Any) -> None:
    arrays = {"image": wanted.images, "fov_arcsec": wanted.fov_arcsec, "object_id": wanted.object_id.to_numpy(), **more}
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    storage.write(url, sink.getvalue())


def put_table(url: str, **columns: Sequence[Any] | NDArray[Any]) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    storage.write(url, sink.getvalue().to_pybytes())
    return url


def put_detections(url: str, ra: Sequence[float] | NDArray[Any], dec: Sequence[float] | NDArray[Any]) -> str:
    return put_table(url, object_id=range(len(ra)), ra=ra, dec=dec)


def upload(folder: Path, url: str) -> str:
    for path in folder.iterdir():
        storage.write(storage.join(url, path.name), path.read_bytes())
    return url


def by_id(url: str) -> Cutouts:
    found = read_shards(url)
    return found.take(np.argsort(found.object_id.to_numpy()))


def test_npz_becomes_shards_and_keeps_its_labels(place: str) -> None:
    given = cutouts_of(25)
    put_npz(f"{place}/in/a.npz", given, ra=given.ra, dec=given.dec, label=given.label)
    summary = run(f"{place}/in", f"{place}/out", shard_rows=10)
    assert summary.exit_code == ExitCode.DONE
    assert len(list_shards(f"{place}/out")) == 3
    assert same(read_shards(f"{place}/out"), given)
    assert given.label is not None
    assert summary.figures["rows_planned"] == summary.figures["rows_written"] == 25
    assert summary.figures["labels"] == {"0": 25 - given.label.sum(), "1": given.label.sum()}


def test_npz_without_labels_gives_shards_without_labels(tmp_path: Path) -> None:
    put_npz(f"{tmp_path}/a.npz", cutouts_of(5))
    summary = run(f"{tmp_path}/a.npz", f"{tmp_path}/out")
    assert summary.figures["labels"] == {}
    assert summary.figures["flags"] == {"NO_POSITION": 5}
    assert read_shards(f"{tmp_path}/out").label is None


def test_a_truth_table_labels_the_npz_rows_that_have_positions(tmp_path: Path) -> None:
    given = cutouts_of(4)
    put_npz(f"{tmp_path}/a.npz", given, ra=[10.0, 20.0, np.nan, 30.0], dec=[1.0, 2.0, np.nan, 3.0])
    truth = put_table(f"{tmp_path}/truth.parquet", ra=[20.0], dec=[2.0], label=[1])
    summary = run(f"{tmp_path}/a.npz", f"{tmp_path}/out", truth=truth)
    found = by_id(f"{tmp_path}/out")
    assert found.label is not None
    assert dict(zip(found.object_id.to_pylist(), found.label.tolist(), strict=True)) == {0: 0, 1: 1, 3: 0}
    assert (summary.figures["rows_written"], summary.figures["rows_ambiguous"]) == (3, 1)
    assert balanced(summary)


def test_a_damaged_npz_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    put_npz(f"{tmp_path}/in/good.npz", cutouts_of(5))
    storage.write(f"{tmp_path}/in/bad.npz", b"PK\x03\x04 nonsense")
    summary = run(f"{tmp_path}/in", f"{tmp_path}/out")
    assert summary.exit_code == ExitCode.EXCEPTIONS
    assert "bad.npz" in "\n".join(summary.text)
    assert len(read_shards(f"{tmp_path}/out")) == 5


def test_each_detection_gets_the_pixels_around_it(place: str, tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = write_tile(tmp_path / "tiles", "A"), write_tile(tmp_path / "tiles", "B", ra=30.4, suffix=".fits.fz", seed=1)
    x, y = rng.uniform(0, SHAPE[1] - 1, (2, 20)), rng.uniform(0, SHAPE[0] - 1, (2, 20))
    sky = [wcs.all_pix2world(x[number], y[number], 0) for number, wcs in enumerate((a, b))]
    ra, dec = np.concatenate(sky, axis=1)
    tiles = upload(tmp_path / "tiles", f"{place}/tiles")
    detections = put_detections(f"{place}/detections.parquet", ra, dec)
    summary = run(tiles, f"{place}/out", detections=detections, shard_rows=15)
    assert summary.exit_code == ExitCode.DONE
    assert len(list_shards(f"{place}/out")) == 4
    found = by_id(f"{place}/out")
    assert found.object_id.to_pylist() == list(range(40))
    assert (found.ra == ra).all()
    geometry = Geometry(stretch=DES)
    for rows, tile in zip((slice(0, 20), slice(20, 40)), scan_tiles(str(tmp_path / "tiles")).tiles, strict=True):
        expected = cut(read_tile(tile, geometry.bands), ra[rows], dec[rows], geometry)
        assert (found.images[rows] == expected.images).all()
        assert (found.flags[rows] == expected.flags).all()


def test_positions_that_cannot_be_cut_are_counted(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    ra, dec = [30.0, 100.0, np.nan, 30.0, 400.0], [-30.0, 0.0, -30.0, -95.0, -30.0]
    detections = put_detections(f"{tmp_path}/d.parquet", ra, dec)
    summary = run(f"{tmp_path}/tiles", f"{tmp_path}/out", detections=detections)
    assert read_shards(f"{tmp_path}/out").object_id.to_pylist() == [0]
    assert (summary.figures["rows_written"], summary.figures["rows_rejected"]) == (1, 4)
    assert (summary.figures["flags"]["OFF_TILE"], summary.figures["flags"]["BAD_POSITION"]) == (1, 3)
    assert balanced(summary)


def test_a_truth_table_labels_detections(place: str, tmp_path: Path) -> None:
    """Its LSBGs are all there are, unless it speaks of what it names alone."""
    write_tile(tmp_path / "tiles")
    tiles = upload(tmp_path / "tiles", f"{place}/tiles")
    dec = [-30.0, -30.0 + 2 * ARCSEC, -30.0 + 20 * ARCSEC, -30.0 - 20 * ARCSEC]  # an LSBG, a piece of it, two others
    detections = put_detections(f"{place}/d.parquet", [30.0] * 4, dec)
    true_dec = [dec[0] + 0.5 * ARCSEC, dec[3]]
    lsbgs = put_table(f"{place}/lsbgs.parquet", ra=[30.0], dec=true_dec[:1], label=[1])
    both = put_table(f"{place}/both.parquet", ra=[30.0, 30.0], dec=true_dec, label=[1, 0])
    all_of_it, named = {0: 1, 2: 0, 3: 0}, {0: 1, 3: 0}
    for number, (truth, rest, wanted, unmatched) in enumerate(
        [(lsbgs, "artifact", all_of_it, 0), (both, "artifact", all_of_it, 0), (both, "skip", named, 2)]
    ):
        summary = run(tiles, f"{place}/out{number}", detections=detections, truth=truth, unmatched=rest)
        found = by_id(f"{place}/out{number}")
        assert found.label is not None
        assert dict(zip(found.object_id.to_pylist(), found.label.tolist(), strict=True)) == wanted
        assert summary.figures["labels"] == {"0": len(wanted) - 1, "1": 1}
        assert (summary.figures["rows_unmatched"], summary.figures["rows_ambiguous"]) == (unmatched, not unmatched)
        assert any("--unmatched skip" in line for line in summary.text) == (not unmatched)
        assert balanced(summary)


def test_images_that_nobody_vetted_are_left_out(tmp_path: Path) -> None:
    given = cutouts_of(4)
    put_npz(f"{tmp_path}/a.npz", given, ra=[10.0, 20.0, np.nan, 30.0], dec=[1.0, 2.0, np.nan, 3.0])
    truth = put_table(f"{tmp_path}/truth.parquet", ra=[20.0, 30.0], dec=[2.0, 3.0], label=[1.0, 0.0])
    summary = run(f"{tmp_path}/a.npz", f"{tmp_path}/out", truth=truth, unmatched="skip")
    found = by_id(f"{tmp_path}/out")
    assert found.label is not None
    assert dict(zip(found.object_id.to_pylist(), found.label.tolist(), strict=True)) == {1: 1, 3: 0}
    assert [summary.figures[f"rows_{end}"] for end in ("unmatched", "ambiguous", "rejected")] == [1, 1, 0]
    assert balanced(summary)
    unknown = put_table(f"{tmp_path}/unknown.parquet", ra=[20.0], dec=[2.0], label=pa.nulls(1, pa.int8()))
    with pytest.raises(InputError, match="no images that the truth gives a label"):
        run(f"{tmp_path}/a.npz", f"{tmp_path}/none", truth=unknown, unmatched="skip")
    three = put_table(f"{tmp_path}/three.parquet", ra=[20.0, 30.0], dec=[2.0, 3.0], label=[2, 0])
    with pytest.raises(InputError, match=r"three\.parquet: column label does not hold .* but 2 too"):
        run(f"{tmp_path}/a.npz", f"{tmp_path}/none", truth=three)


def test_the_match_radius_is_the_one_given(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    detections = put_detections(f"{tmp_path}/d.parquet", [30.0], [-30.0])
    truth = put_table(f"{tmp_path}/truth.parquet", ra=[30.0], dec=[-30.0 + 2 * ARCSEC], label=[1])
    for radius, wanted in ((1.0, 0), (3.0, 1)):
        output = f"{tmp_path}/{radius}"
        run(f"{tmp_path}/tiles", output, detections=detections, truth=truth, radius_arcsec=radius)
        label = read_shards(output).label
        assert label is not None
        assert label.tolist() == [wanted]


def test_positions_of_nan_are_rejected_with_a_truth_table_too(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    detections = put_detections(f"{tmp_path}/d.parquet", [30.0, np.nan, np.inf], [-30.0, -30.0, np.nan])
    truth = put_table(f"{tmp_path}/truth.parquet", ra=[30.0], dec=[-30.0], label=[1])
    summary = run(f"{tmp_path}/tiles", f"{tmp_path}/out", detections=detections, truth=truth)
    found = read_shards(f"{tmp_path}/out")
    assert found.label is not None
    assert (found.object_id.to_pylist(), found.label.tolist()) == ([0], [1])
    assert (summary.figures["rows_rejected"], summary.figures["rows_ambiguous"]) == (2, 0)


def test_rows_of_a_truncated_tile_are_quarantined(place: str, tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles", "A")
    write_tile(tmp_path / "tiles", "B", ra=30.4)
    damaged = tmp_path / "tiles" / "B_r.fits"
    damaged.write_bytes(damaged.read_bytes()[:50_000])
    tiles = upload(tmp_path / "tiles", f"{place}/tiles")
    detections = put_detections(f"{place}/d.parquet", [30.0, 30.4, 30.4], [-30.0, -30.0, -30.001])
    summary = run(tiles, f"{place}/out", detections=detections)
    assert summary.exit_code == ExitCode.EXCEPTIONS
    assert (summary.figures["rows_written"], summary.figures["rows_quarantined"]) == (1, 2)
    assert "B_r.fits" in "\n".join(summary.text)
    assert read_shards(f"{place}/out").object_id.to_pylist() == [0]


def test_an_output_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    detections = put_detections(f"{tmp_path}/d.parquet", [30.0], [-30.0])
    shard = tmp_path / "out" / f"{shard_name(0, 'T1')}-00000.parquet"
    shard.mkdir(parents=True)  # in the way
    with pytest.raises(StorageError, match=shard.name):
        run(f"{tmp_path}/tiles", f"{tmp_path}/out", detections=detections)


def test_all_kinds_of_rows_add_up(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles", "A")
    write_tile(tmp_path / "tiles", "B", ra=30.4, bands="gz")  # lacks r
    ra = [30.0, 30.0, 30.4, np.nan, 100.0]
    detections = put_detections(f"{tmp_path}/d.parquet", ra, [-30.0, -30.0 + 2 * ARCSEC, -30.0, -30.0, 0.0])
    truth = put_table(f"{tmp_path}/truth.parquet", ra=[30.0], dec=[-30.0], label=[1])
    summary = run(f"{tmp_path}/tiles", f"{tmp_path}/out", detections=detections, truth=truth)
    counts = {end: summary.figures[f"rows_{end}"] for end in ("written", "rejected", "ambiguous", "quarantined")}
    assert counts == {"written": 1, "rejected": 2, "ambiguous": 1, "quarantined": 1}
    assert summary.figures["rows_planned"] == 5


def test_dead_rows_of_a_tile_are_flagged_where_they_are_in_the_field(tmp_path: Path) -> None:
    wcs = tan_wcs(SHAPE)
    for seed, band in enumerate("grz"):
        pixels = noise(SHAPE, seed)
        pixels[98:102] = 0
        write_band(tmp_path / "tiles" / f"A_{band}.fits", pixels, wcs=wcs, band=band)
    ra, dec = wcs.all_pix2world([160, 160], [100, 230], 0)  # the field is 128 px wide
    detections = put_detections(f"{tmp_path}/d.parquet", ra, dec)
    summary = run(f"{tmp_path}/tiles", f"{tmp_path}/out", detections=detections)
    found = by_id(f"{tmp_path}/out")
    assert [Flag.names(int(flags)) for flags in found.flags] == [["SOME_MASKED"], []]
    assert summary.figures["flags"] == {"SOME_MASKED": 1}


def test_npz_with_detections_is_refused(tmp_path: Path) -> None:
    put_npz(f"{tmp_path}/in/a.npz", cutouts_of(5))
    detections = put_detections(f"{tmp_path}/d.parquet", [30.0], [-30.0])
    with pytest.raises(UsageError, match="--detections"):
        run(f"{tmp_path}/in", f"{tmp_path}/out", detections=detections)
    assert not (tmp_path / "out").exists()


def test_tiles_without_detections_are_refused(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    with pytest.raises(UsageError, match="--detections"):
        run(f"{tmp_path}/tiles", f"{tmp_path}/out")


def test_detections_without_tiles_are_refused(tmp_path: Path) -> None:
    detections = put_detections(f"{tmp_path}/d.parquet", [30.0], [-30.0])
    with pytest.raises(UsageError, match="nowhere"):
        run(f"{tmp_path}/nowhere", f"{tmp_path}/out", detections=detections)


def test_an_output_folder_with_parquet_files_is_refused(place: str) -> None:
    put_npz(f"{place}/a.npz", cutouts_of(5))
    put_table(f"{place}/out/mine.parquet", precious=[1])
    with pytest.raises(UsageError, match=r"holds Parquet files already"):
        run(f"{place}/a.npz", f"{place}/out")
    assert [storage.name_of(entry.url) for entry in storage.list_objects(f"{place}/out")] == ["mine.parquet"]
