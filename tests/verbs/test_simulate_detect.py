"""`simulate` and `detect` through a real Ray, on disk and on S3."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshadows import settings, storage
from deepshadows.outcomes import ExitCode, InputError, StorageError, UsageError
from deepshadows.sky import stretch
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.detections import read_table
from deepshadows.sky.extraction import DETECTION_SCHEMA
from deepshadows.sky.shards import read_shards
from deepshadows.sky.simulation import fits_bytes, simulate_tile
from deepshadows.sky.surveys import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.verbs import detect, simulate
from deepshadows.verbs.simulate_cutouts import FEATURES, labelled_cutouts, outshone, standing_apart
from deepshadows.verbs.tasks import in_order
from tests.sky.tile_files import write_tile

pytestmark = pytest.mark.usefixtures("ray_local")


def digests(folder: str) -> dict[str, str]:
    return {
        storage.relative(entry.url, folder): hashlib.sha256(storage.read(entry.url)).hexdigest()
        for entry in storage.list_objects(folder)
    }


@pytest.mark.parametrize("place", ["s3"], indirect=True)  # the others are local
def test_simulate_then_detect_gives_one_sorted_table(place: str) -> None:
    summary = simulate.run(settings.Simulate(tiles=2, tile_size_pix=512, seed=4, output=place))
    assert summary.exit_code is ExitCode.DONE
    truth = pq.read_table(storage.open_arrow(storage.join(place, "truth.parquet")))
    assert summary.figures["objects"] == truth.num_rows
    assert set(truth["tile"].to_pylist()) == {"DSIM0000", "DSIM0001"}
    index = pq.read_table(storage.open_arrow(storage.join(place, "tile_index.parquet")))
    assert index.num_rows == 8

    output = storage.join(place, "detections.parquet")
    found = detect.run(settings.Detect(tiles=storage.join(place, "tiles"), output=output))
    table = pq.read_table(storage.open_arrow(output))
    assert found.exit_code is ExitCode.DONE
    assert found.figures["rows"] == table.num_rows > 50
    assert table.schema.equals(DETECTION_SCHEMA)
    assert table["tile"].to_pylist() == sorted(table["tile"].to_pylist())
    ids = table["object_id"].to_numpy()
    assert len(np.unique(ids)) == len(ids)
    for tile in ("DSIM0000", "DSIM0001"):
        assert (np.diff(ids[np.array(table["tile"].to_pylist()) == tile]) == 1).all()

    cut = detect.run(settings.Detect(tiles=storage.join(place, "tiles"), output=output, cuts="des"))
    assert cut.figures["rows_found"] == found.figures["rows"]
    assert cut.figures["rows_rejected"] == sum(cut.figures["rejected_by_cut"].values())
    assert cut.figures["rows"] + cut.figures["rows_rejected"] == cut.figures["rows_found"]


def test_the_same_seed_gives_the_same_bytes_in_ray_and_alone(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    for folder in (first, second):
        simulate.run(settings.Simulate(tiles=3, tile_size_pix=512, seed=9, output=folder))
    assert digests(first + "/tiles") == digests(second + "/tiles")
    assert digests(first)["truth.parquet"] == digests(second)["truth.parquet"]
    alone = simulate_tile(DES, 2, 9, 512)
    assert storage.read(f"{first}/tiles/DSIM0002_r.fits.fz") == fits_bytes(alone, "r")


def test_cutouts_are_balanced_labelled_and_repeat(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        wanted = settings.Simulate(cutouts=6, tile_size_pix=768, seed=2, output=folder)
        summary = simulate.run(wanted)
        assert summary.figures["rows"] == 12
    assert digests(folders[0]) == digests(folders[1])
    cutouts = read_shards(folders[0])
    assert cutouts.label is not None
    assert np.bincount(cutouts.label).tolist() == [6, 6]
    assert len(set(cutouts.object_id.to_pylist())) == 12
    features = read_table(storage.join(folders[0], FEATURES))
    assert features["object_id"].to_pylist() == cutouts.object_id.to_pylist()
    assert features["label"].to_pylist() == cutouts.label.tolist()
    assert np.allclose(features["ra"].to_numpy(), cutouts.ra)
    assert features["mag_auto_g"].null_count == 0
    lsbg, artifact = (cutouts.images[cutouts.label == label].astype(float) for label in (1, 0))
    for images in (lsbg, artifact):
        assert images.std((1, 2, 3)).min() > 1  # no blank image
    blank = 32
    centre = lsbg[:, 28:36, 28:36].mean()
    assert centre > blank + 5  # a smudge in the middle


def test_cutouts_of_hsc_are_resampled_to_the_same_field() -> None:
    for fov_arcsec in (33.5, 21.5):
        geometry = Geometry(fov_arcsec=fov_arcsec, stretch=stretch.HSC)
        cutouts = labelled_cutouts("hsc", 0, 3, 1024, geometry).cutouts
        assert len(cutouts)
        assert cutouts.stretch == "hsc-1"
        assert cutouts.fov_arcsec == fov_arcsec


def test_of_neighbouring_artifacts_the_brightest_stands() -> None:
    ra, dec = 30 + np.array([0, 5, 14, 100]) / 3600, np.full(4, 0.0)
    mag = np.array([20.0, 19.0, 21.0, 22.0])  # first and second are too close, the third is not
    assert standing_apart(ra, dec, mag).tolist() == [False, True, True, True]
    assert standing_apart(ra, dec, np.array([19.0, 20.0, 21.0, 22.0])).tolist() == [True, False, True, True]


def test_a_detection_much_brighter_than_its_lsbg_is_outshone() -> None:
    truth = pa.table({"ra": [30.0, 31.0], "dec": [0.0, 0.0], "label": [1, 0], "mag_g": [20.0, 15.0]})
    ra, dec = np.array([30.0, 30.0, 30.0]), np.array([0.0, 1 / 3600, 0.0])
    assert outshone(ra, dec, np.array([19.9, 19.0, 20.5]), truth).tolist() == [False, True, False]


def test_a_folder_of_another_simulation_is_refused(tmp_path: Path) -> None:
    simulate.run(settings.Simulate(tiles=1, tile_size_pix=512, output=str(tmp_path)))
    with pytest.raises(UsageError, match="another --output"):
        simulate.run(settings.Simulate(tiles=1, tile_size_pix=512, seed=2, output=str(tmp_path)))


def test_unreadable_tiles_are_listed_and_the_rest_is_done(tmp_path: Path) -> None:
    simulate.run(settings.Simulate(tiles=2, tile_size_pix=512, output=str(tmp_path / "sky")))
    tiles = tmp_path / "sky" / "tiles"
    broken = tiles / "DSIM0001_r.fits.fz"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    (tiles / "notes.fits").write_text("not FITS at all")
    output = str(tmp_path / "detections.parquet")
    summary = detect.run(settings.Detect(tiles=str(tiles), output=output))
    assert summary.exit_code is ExitCode.EXCEPTIONS
    assert summary.figures["units_quarantined"] == 2
    assert summary.figures["units_planned"] == summary.figures["units_done"] + 2
    assert "notes.fits" in "\n".join(summary.text)
    assert "DSIM0001" in "\n".join(summary.text)
    assert set(pq.read_table(output)["tile"].to_pylist()) == {"DSIM0000"}


def test_a_store_that_fails_is_no_fault_of_the_tile(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    (tile,) = scan_tiles(str(tmp_path / "tiles")).tiles
    wanted = settings.Detect(tiles="unused", output="unused")
    shutil.rmtree(tmp_path / "tiles")
    assert "not found" in detect.detect_tile(tile, wanted).reason
    (tmp_path / "tiles").write_text("no folder any more")
    with pytest.raises(StorageError, match="failed"):
        detect.detect_tile(tile, wanted)


def test_an_empty_folder_and_a_wrong_output_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no FITS tiles"):
        detect.run(settings.Detect(tiles=str(tmp_path), output=str(tmp_path / "d.parquet")))
    with pytest.raises(UsageError, match=r"\.parquet"):
        detect.run(settings.Detect(tiles=str(tmp_path), output=str(tmp_path / "d.csv")))
    with pytest.raises(UsageError, match="nothing to simulate"):
        simulate.run(settings.Simulate(tiles=0, output=str(tmp_path)))


def test_a_failure_in_a_task_arrives_as_itself() -> None:
    import ray

    @ray.remote
    def task(number: int) -> int:
        if number == 2:
            raise InputError(f"tile {number} is bad")
        return number

    results = in_order(task, ((number,) for number in range(5)))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match=r"^tile 2 is bad$"):
        next(results)
