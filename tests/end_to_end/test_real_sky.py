"""Real sky in object storage to a catalogue that LSDB opens: DES DR1, Legacy Surveys DR9 and KiDS tiles, real cut-outs.

Needs the folder of real data beside the checkout, or named by DEEPSHADOWS_REALDATA. The commands are those of a user:

    pytest -m slow tests/end_to_end/test_real_sky.py -s
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lsdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from deepshadows import storage
from deepshadows.catalog.collection import read_unplaced
from tests.sky.tile_files import tan_wcs

REALDATA = Path(os.environ.get("DEEPSHADOWS_REALDATA", Path(__file__).parents[3] / "shared" / "realdata"))
KIDS_SCALE_ARCSEC = 0.2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}"),
    pytest.mark.timeout(900),
]


def deepshadows(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a command as a user does; its JSON line."""
    words = [sys.executable, "-m", "deepshadows", *arguments, "--json"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    print(result.stdout)
    record: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return record


def upload_tiles(bucket: str) -> None:
    """DES and Legacy tiles as they are; KiDS with a WCS and its zero point (maggies) attached."""
    for folder, pattern in (("des_dr1", "*.fits"), ("legacy_dr9_59.1067_-30.4848", "cutout_*.fits")):
        for path in (REALDATA / "tiles" / folder).glob(pattern):
            storage.write(storage.join(bucket, "tiles", folder, path.name), path.read_bytes())
    for band in ("g", "r", "i", "Z"):
        with fits.open(REALDATA / "tiles" / "kids_viking_2600px_no_wcs" / f"{band}.fits") as hdus:
            data = hdus[1].data
        header = tan_wcs(data.shape, ra=215.0, dec=0.5, scale_arcsec=KIDS_SCALE_ARCSEC).to_header()
        header.update({"BAND": band.lower(), "MAGZERO": 0.0, "TILENAME": "KIDS-215-0"})
        sink = io.BytesIO()
        image = fits.CompImageHDU(data, header, compression_type="RICE_1", quantize_level=16.0)
        fits.HDUList([fits.PrimaryHDU(), image]).writeto(sink)
        storage.write(storage.join(bucket, "tiles", "kids", f"KIDS_{band.lower()}.fits.fz"), sink.getvalue())


def test_real_tiles_and_cutouts_become_a_catalogue(bucket: str, trained: str) -> None:
    upload_tiles(bucket)
    for path in (REALDATA / "cutouts").glob("*.npz"):
        storage.write(storage.join(bucket, "npz", path.name), path.read_bytes())
    detections = storage.join(bucket, "detections.parquet")
    found = deepshadows("detect", "--tiles", f"{bucket}/tiles", "--output", detections)
    table = pq.read_table(storage.open_arrow(detections))
    assert {"DES0151+0001", "KIDS-215-0"} <= set(table["tile"].to_pylist())
    tiles = deepshadows(
        "classify", "--input", f"{bucket}/tiles", "--detections", detections, "--checkpoint", trained,
        "--output", f"{bucket}/run-tiles",
    )  # fmt: skip
    assert tiles["rows_planned"] == table.num_rows == tiles["rows_scored"] + tiles["rows_unscored"]
    assert tiles["rows_unscored"] == 0
    cut = deepshadows("cutouts", "--input", f"{bucket}/npz", "--output", f"{bucket}/shards")
    images = deepshadows(
        "classify", "--input", f"{bucket}/shards", "--checkpoint", trained, "--output", f"{bucket}/run-cutouts"
    )
    assert images["rows_scored"] == cut["rows_written"] == 404
    print(json.dumps({"image_flags": json.loads(storage.read(f"{bucket}/run-tiles/manifest.json"))["flag_counts"]}))
    for run, name in (("run-tiles", "sky"), ("run-cutouts", "cutouts")):
        deepshadows("publish", "--run", f"{bucket}/{run}", "--catalog", f"{bucket}/{name}")
    sky = lsdb.open_catalog(f"{bucket}/sky", storage_options={"anon": False}).compute()
    assert len(sky) == table.num_rows
    assert np.isfinite(sky["p_lsbg"]).all()
    assert set(sky["object_id"]) == set(table["object_id"].to_pylist())
    placed = lsdb.open_catalog(f"{bucket}/cutouts", storage_options={"anon": False}).compute()
    assert len(placed) == 49, "the Greco LSBGs are those with positions"
    assert read_unplaced(f"{bucket}/cutouts").num_rows == 404 - 49
    assert found["exit_code"] == 0


def test_the_network_is_judged_on_real_labels(trained: str) -> None:
    judged = deepshadows(
        "evaluate", "--checkpoint", trained, "--cutouts", str(REALDATA / "cutouts" / "des_labelled_dev.npz")
    )
    assert judged["n"] == 100
    assert judged["tp"] + judged["fn"] == 49
    assert judged["auc_lo"] <= judged["auc"] <= judged["auc_hi"]
    assert judged["auc"] > 0.5, "a network trained on the simulated sky knows something of the real one"


def test_a_truncated_and_a_dead_cube_are_told(tmp_path: Path, trained: str) -> None:
    folder = tmp_path / "cubes"
    folder.mkdir()
    rows = []
    for name in ("example_a", "example_bad_pix", "example_incomplete"):
        source = REALDATA / "tiles" / "decals_viewer_cubes" / f"{name}.fits"
        (folder / source.name).write_bytes(source.read_bytes())
        header = fits.getheader(source)
        rows.append((name, header["CRVAL1"], header["CRVAL2"]))
    (tmp_path / "d.csv").write_text("object_id,ra,dec\n" + "\n".join(f"{n},{ra},{dec}" for n, ra, dec in rows))
    record = deepshadows(
        "classify", "--input", str(folder), "--detections", str(tmp_path / "d.csv"), "--checkpoint", trained,
        "--output", str(tmp_path / "run"), "--retries", "0", code=3,
    )  # fmt: skip
    assert (record["rows_scored"], record["rows_unscored"], record["rows_quarantined"]) == (2, 0, 1)
    (path,) = (tmp_path / "run" / "quarantine").iterdir()
    assert "example_incomplete.fits" in json.loads(path.read_text())["reason"]
    flags = json.loads((tmp_path / "run" / "manifest.json").read_text())["flag_counts"]
    assert flags["SOME_MASKED"] == 1, "the cube with dead rows"
