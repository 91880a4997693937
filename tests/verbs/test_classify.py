"""`classify` on a real local Ray, on disk and on S3: every row scored once, flagged, or quarantined."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshadows import storage
from deepshadows.model.card import Evaluation, read_card
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import ExitCode, HeldError, InputError, Summary, UsageError
from deepshadows.run.lease import Lease
from deepshadows.run.manifest import quarantined_units, read_manifest, score_objects
from deepshadows.schema import Flag, score_schema
from deepshadows.settings import Classify
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.shards import Cutouts, split, write_shard
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile
from deepshadows.verbs import classify
from tests.end_to_end.ray_head import kill, listeners
from tests.sky.test_shards import cutouts_of
from tests.sky.tile_files import noise, tan_wcs, write_band, write_tile

pytestmark = pytest.mark.usefixtures("ray_local")


def run(checkpoint: str, source: str, output: str, **flags: Any) -> Summary:
    flags = {"precision": "exact", "unit_rows": 300, **flags}
    return classify.run(Classify(input=source, checkpoint=checkpoint, output=output, **flags))


def scores(run_url: str) -> pa.Table:
    """All rows of a finished run, sorted by identifier."""
    scored = [score for block in score_objects(run_url, read_manifest(run_url)) for score in block]
    parts = [pq.read_table(storage.open_arrow(storage.join(run_url, score.url))) for score in scored]
    return pa.concat_tables(parts).sort_by("object_id")


def same_catalogue(a: pa.Table, b: pa.Table) -> bool:
    return bool(a.drop_columns(["run", "unit"]).equals(b.drop_columns(["run", "unit"])))


def write_shards(folder: str, cutouts: Cutouts, rows: int) -> None:
    for number, part in enumerate(split(cutouts, rows)):
        write_shard(storage.join(folder, f"{number:03d}.parquet"), part)


def test_each_row_gets_the_score_of_its_image(checkpoint: str, place: str) -> None:
    cutouts = cutouts_of(1500, labelled=False)
    write_shards(storage.join(place, "in"), cutouts, 700)
    summary = run(checkpoint, storage.join(place, "in"), storage.join(place, "run"))
    assert summary.exit_code == ExitCode.DONE
    assert summary.figures["rows_planned"] == summary.figures["rows_scored"] == 1500
    table = scores(storage.join(place, "run"))
    assert table.schema.equals(score_schema(pa.int64()))
    assert table["object_id"].equals(pa.chunked_array([cutouts.object_id]))
    scorer = load_scorer(checkpoint, precision="exact", batch_size=256, threads=2)
    logits = scorer.score(cutouts.images).logits
    assert (table["logit"].to_numpy() == logits).all()
    assert (table["p_lsbg"].to_numpy() == scorer.card.probabilities(logits)).all()
    assert (table["ra"].to_numpy() == cutouts.ra).all()
    assert table["p_lsbg_err"].null_count == 1500


def test_unit_size_and_order_do_not_change_the_catalogue(checkpoint: str, tmp_path: Path) -> None:
    cutouts = cutouts_of(900, strings=True, labelled=False)
    write_shards(str(tmp_path / "a"), cutouts, 900)
    write_shards(str(tmp_path / "b"), cutouts.take(np.random.default_rng(0).permutation(900)), 250)
    run(checkpoint, str(tmp_path / "a"), str(tmp_path / "run_a"), unit_rows=1000)
    run(checkpoint, str(tmp_path / "b"), str(tmp_path / "run_b"), unit_rows=100, batch_size=64, scorers=2, threads=1)
    assert same_catalogue(scores(str(tmp_path / "run_a")), scores(str(tmp_path / "run_b")))


def test_tiles_and_detections(checkpoint: str, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
    made = tmp_path / "made"
    wcs = write_tile(made, "A")
    write_tile(made, "B", ra=30.4, suffix=".fits.fz")
    write_tile(made, "C", ra=30.8, bands="gr")  # lacks z
    x, y = rng.uniform(0, 319, 50), rng.uniform(0, 299, 50)
    ra, dec = wcs.all_pix2world(x, y, 0)
    ra = np.concatenate([ra, [30.4, 30.8, 100.0, np.nan, 30.0]])
    dec = np.concatenate([dec, [-30.0, -30.0, 0.0, 1.0, -95.0]])
    ids = list(range(55))
    ids[7] = 3  # a duplicate
    for path in made.iterdir():
        storage.write(storage.join(place, "tiles", path.name), path.read_bytes())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ids, "ra": ra, "dec": dec}), sink)
    detections = storage.join(place, "detections.parquet")
    storage.write(detections, sink.getvalue().to_pybytes())
    target = storage.join(place, "run")
    summary = run(checkpoint, storage.join(place, "tiles"), target, detections=detections, id_column="id")
    assert summary.exit_code == ExitCode.DONE
    assert {name: summary.figures[name] for name in ("rows_planned", "rows_scored", "rows_unscored")} == {
        "rows_planned": 55, "rows_scored": 50, "rows_unscored": 5,
    }  # fmt: skip
    table = scores(target)
    named = {row["object_id"]: Flag.names(row["flags"]) for row in table.to_pylist() if row["p_lsbg"] is None}
    assert "DUPLICATE_ID" in named.pop(3)
    assert named == {51: ["MISSING_BAND"], 52: ["OFF_TILE"], 53: ["BAD_POSITION"], 54: ["BAD_POSITION"]}
    rejects = pq.read_table(storage.open_arrow(storage.join(target, "rejects.parquet")))
    assert sorted(rejects["object_id"].to_pylist()) == [52, 53, 54]
    tile = read_tile(scan_tiles(str(made)).tiles[0], ("z", "r", "g"))
    stack = cut(tile, ra[:50], dec[:50], Geometry(stretch=DES))
    logits = load_scorer(checkpoint, precision="exact", threads=2).score(stack.images).logits
    by_id = {row["object_id"]: row["logit"] for row in table.to_pylist() if row["logit"] is not None}
    assert all(by_id[ids[row]] == logits[row] for row in range(50) if row != 7)


def test_bad_units_are_quarantined_with_their_reason(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_shards(str(folder), cutouts_of(600, labelled=False), 200)
    (folder / "foreign.parquet").write_bytes(b"not Parquet")
    damaged = bytearray((folder / "001.parquet").read_bytes())
    start = damaged.find(cutouts_of(600, labelled=False).images[300].tobytes()[:64])
    damaged[start - 20_000 : start - 19_000] = os.urandom(1000)
    pages = pq.ParquetFile(folder / "001.parquet").metadata.row_group(0).column(3)
    offset = pages.data_page_offset
    damaged[offset : offset + 16] = b"\xff" * 16
    (folder / "001.parquet").write_bytes(damaged)
    summary = run(checkpoint, str(folder), str(tmp_path / "run"), retries=0)
    assert summary.exit_code == ExitCode.EXCEPTIONS
    figures = summary.figures
    assert (figures["rows_planned"], figures["rows_scored"], figures["rows_quarantined"]) == (600, 400, 200)
    assert figures["units_quarantined"] == 2
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "quarantine").iterdir()]
    assert {Path(record["object"]).name for record in records} == {"001.parquet", "foreign.parquet"}
    assert all(record["reason"] for record in records)
    rejects = pq.read_table(tmp_path / "run" / "rejects.parquet")
    assert rejects["object_id"].to_pylist() == list(range(200, 400)), "identifiers were still readable"


def test_tiles_that_are_truncated_lack_a_wcs_or_have_bands_on_two_grids_are_quarantined(
    checkpoint: str, tmp_path: Path
) -> None:
    folder = tmp_path / "tiles"
    wcs = write_tile(folder, "A")
    write_tile(folder, "B", ra=30.4)
    write_band(folder / "C_g.fits", noise((50, 50), 1), wcs=None)
    (folder / "B_r.fits").write_bytes((folder / "B_r.fits").read_bytes()[:50_000])
    write_tile(folder, "D", ra=30.8, bands="gr")
    write_band(folder / "D_z.fits", noise((300, 320), 1), wcs=tan_wcs((300, 320), ra=30.801), band="z")
    write_tile(folder, "E", ra=31.2, bands="gr")
    write_band(folder / "E_z.fits", noise((300, 321), 1), wcs=tan_wcs((300, 321), ra=31.2), band="z")
    ra, dec = wcs.all_pix2world([100, 200], [100, 200], 0)
    ids = [1, 2, 3, 4, 5]
    table = pa.table({"object_id": ids, "ra": [*ra, 30.4, 30.8, 31.2], "dec": [*dec, -30.0, -30.0, -30.0]})
    pq.write_table(table, tmp_path / "d.parquet")
    summary = run(checkpoint, str(folder), str(tmp_path / "run"), detections=str(tmp_path / "d.parquet"), retries=0)
    assert summary.exit_code == ExitCode.EXCEPTIONS
    assert (summary.figures["rows_scored"], summary.figures["rows_quarantined"]) == (2, 3)
    told = "\n".join(summary.text)
    assert "B_r.fits" in told
    assert "C_g.fits" in told
    target = str(tmp_path / "run")
    reasons = {bad.object: bad.reason for bad in quarantined_units(target, read_manifest(target))}
    for name, how in (("D", "WCS"), ("E", "shape")):
        assert how in reasons[f"tile {name}"]
        assert all(f"{name}_{band}.fits" in reasons[f"tile {name}"] for band in "rz"), "both are named"
    assert sorted(pq.read_table(tmp_path / "run" / "rejects.parquet")["object_id"].to_pylist()) == [3, 4, 5]


def test_an_unreadable_band_quarantines_its_tile(checkpoint: str, tmp_path: Path) -> None:
    wcs = write_tile(tmp_path / "tiles", "A")
    (tmp_path / "tiles" / "A_r.fits").write_bytes(b"<Error>no such thing</Error>" * 300)
    ra, dec = wcs.all_pix2world([100], [100], 0)
    pq.write_table(pa.table({"object_id": [1], "ra": ra, "dec": dec}), tmp_path / "d.parquet")
    summary = run(
        checkpoint, str(tmp_path / "tiles"), str(tmp_path / "run"), detections=str(tmp_path / "d.parquet"), retries=0
    )
    assert summary.exit_code == ExitCode.EXCEPTIONS
    assert (summary.figures["rows_planned"], summary.figures["rows_quarantined"]) == (1, 1)
    target = str(tmp_path / "run")
    assert "A_r.fits" in next(quarantined_units(target, read_manifest(target))).reason


def test_a_store_that_stops_answering_stops_the_run_and_quarantines_nothing(
    checkpoint: str, bucket: str, tmp_path: Path
) -> None:
    """Read keys that are revoked between plan and work, as the scorer of a unit meets them."""
    write_shards(f"{bucket}/in", cutouts_of(10, labelled=False), 10)
    script = (
        "import os, sys; from dataclasses import asdict\n"
        "from deepshadows import storage; from deepshadows.settings import Classify\n"
        "from deepshadows.run.units import make_unit; from deepshadows.verbs.unit_scoring import UnitScorer\n"
        f"entry = storage.list_objects({bucket + '/in'!r})[0]\n"
        "unit = make_unit(kind='shard', url=entry.url, etag=entry.etag, size_bytes=entry.size_bytes, rows=10)\n"
        "os.environ['AWS_SECRET_ACCESS_KEY'] = 'revoked'; storage._s3.cache_clear()\n"
        f"wanted = Classify(input='x', output='x', checkpoint={checkpoint!r}, retries=1, precision='exact')\n"
        f"scorer = UnitScorer(wanted, {str(tmp_path / 'run')!r}, 'r', 'f', 1, 'cpu')\n"
        "row = scorer(asdict(unit)); assert not row['quarantined']; print(row['failure'])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "permission denied" in result.stdout, result.stderr
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_their_card_are_refused_before_anything_is_written(
    checkpoint: str, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "tampered")
    weights = tmp_path / "tampered" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    write_shards(str(tmp_path / "in"), cutouts_of(10, labelled=False), 10)
    with pytest.raises(InputError, match="sha256"):
        run(str(tmp_path / "tampered"), str(tmp_path / "in"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_empty_catalogue_is_a_finished_run(checkpoint: str, tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles")
    empty = pa.schema([("object_id", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64())]).empty_table()
    pq.write_table(empty, tmp_path / "d.parquet")
    summary = run(checkpoint, str(tmp_path / "tiles"), str(tmp_path / "run"), detections=str(tmp_path / "d.parquet"))
    assert summary.exit_code == ExitCode.DONE
    assert summary.figures["rows_planned"] == 0
    assert read_manifest(str(tmp_path / "run")).score_parts == ()


def test_a_finished_run_is_not_done_again_and_another_input_is_refused(checkpoint: str, tmp_path: Path) -> None:
    source, target = str(tmp_path / "in"), str(tmp_path / "run")
    write_shards(source, cutouts_of(400, labelled=False), 200)
    run(checkpoint, source, target)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "scores").rglob("*.parquet")}
    again = run(checkpoint, source, target)
    assert again.figures["rows_scored_here"] == 0
    assert again.figures["rows_scored"] == 400
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "scores").rglob("*.parquet")} == before
    write_shard(str(tmp_path / "in" / "more.parquet"), cutouts_of(10, labelled=False, seed=9))
    with pytest.raises(UsageError, match="belongs to another run"):
        run(checkpoint, source, target)


def test_a_look_that_the_card_logs_makes_no_other_run(checkpoint: str, tmp_path: Path) -> None:
    source, copy = str(tmp_path / "in"), tmp_path / "copy"
    write_shards(source, cutouts_of(10, labelled=False), 10)
    shutil.copytree(checkpoint, copy)
    first = run(str(copy), source, str(tmp_path / "a"))
    card = read_card(str(copy))
    logged = card.model_copy(update={"evaluations": (Evaluation(sample="s", commit="c", figures={"auc": 0.9}),)})
    (copy / "card.json").write_text(logged.model_dump_json())
    again = run(str(copy), source, str(tmp_path / "a"))
    assert first.figures["rows_scored_here"] == 10
    assert again.figures["rows_scored_here"] == 0


def test_a_directory_with_something_else_is_refused(checkpoint: str, tmp_path: Path) -> None:
    write_shards(str(tmp_path / "in"), cutouts_of(10, labelled=False), 10)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        run(checkpoint, str(tmp_path / "in"), str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_input_that_does_not_fit_the_card_is_refused(checkpoint: str, tmp_path: Path) -> None:
    cutouts = cutouts_of(10, labelled=False)
    for name, wrong, message in (
        ("stretch", {"stretch": "hsc-1"}, "stretch hsc-1"),
        ("fov", {"fov_arcsec": 21.5}, "--fov-arcsec"),
        ("bands", {"bands": ("i", "r", "g")}, "bands i,r,g"),
    ):
        write_shard(str(tmp_path / name / "a.parquet"), Cutouts(**{**vars(cutouts), **wrong}))
        with pytest.raises(UsageError, match=message):
            run(checkpoint, str(tmp_path / name), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    summary = run(checkpoint, str(tmp_path / "fov"), str(tmp_path / "run"), fov_arcsec=21.5)
    assert summary.figures["rows_scored"] == 10
    assert read_manifest(str(tmp_path / "run")).settings["fov_arcsec"] == 21.5


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_missing_input_is_named(checkpoint: str, tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=missing):
        run(checkpoint, str(tmp_path / missing), str(tmp_path / "run"))


def test_two_drivers_cannot_work_on_one_run(checkpoint: str, tmp_path: Path) -> None:
    write_shards(str(tmp_path / "in"), cutouts_of(10, labelled=False), 10)
    with Lease(str(tmp_path / "run"), ttl_s=3), pytest.raises(HeldError):
        run(checkpoint, str(tmp_path / "in"), str(tmp_path / "run"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "deepshadows", *arguments, "--json"]


def last_line(output: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return record


@pytest.mark.parametrize("place", [pytest.param("local", marks=pytest.mark.slow), "s3"], indirect=True)
@pytest.mark.timeout(600)  # three drivers one after the other, each with a Ray of its own
def test_a_killed_driver_s_run_goes_on_with_exactly_what_is_missing(checkpoint: str, place: str) -> None:
    source, target = storage.join(place, "in"), storage.join(place, "run")
    write_shards(source, cutouts_of(4000, labelled=False), 100)
    arguments = command(
        "classify", "--input", source, "--checkpoint", checkpoint, "--output", target, "--precision", "exact",
        "--unit-rows", "100", "--threads", "1",
    )  # fmt: skip
    driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while len(storage.list_objects(storage.join(target, "scores"))) < 5:
            assert time.monotonic() < deadline, "the driver commits nothing"
            assert driver.poll() is None
            time.sleep(0.05)
        family = {}
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                family[process] = process.name()
        assert listeners(family) == {"127.0.0.1"}
    finally:
        driver.kill()
    driver.wait()
    agents = [process for process, name in family.items() if name.endswith("Agent")]  # these outlive it by minutes
    _, alive = psutil.wait_procs(family.keys() - agents, timeout=60)  # a worker may finish what it has in hand
    assert not alive
    kill(agents)
    kept = {entry.url: entry.etag for entry in storage.list_objects(storage.join(target, "scores"))}
    assert 5 <= len(kept) < 40
    assert not storage.exists(storage.join(target, "manifest.json"))
    result = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)
    record = last_line(result.stdout)
    assert result.returncode == 0
    assert record["rows_planned"] == record["rows_scored"] == 4000
    assert record["rows_scored_here"] == 100 * (40 - len(kept))
    after = {entry.url: entry.etag for entry in storage.list_objects(storage.join(target, "scores"))}
    assert kept.items() <= after.items(), "what was committed was not touched"
    undisturbed = storage.join(place, "undisturbed")
    run(checkpoint, source, undisturbed)
    assert same_catalogue(scores(target), scores(undisturbed))


def test_wrong_credentials_are_named_but_not_shown(checkpoint: str, bucket: str) -> None:
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "do-not-print-me"}
    arguments = command("classify", "--input", f"{bucket}/in", "--checkpoint", checkpoint, "--output", f"{bucket}/run")
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert "AWS_ACCESS_KEY_ID" in result.stderr
    assert "do-not-print-me" not in result.stdout + result.stderr
    assert last_line(result.stdout)["exit_code"] == 1


@pytest.mark.timeout(500)
def test_a_full_disk_stops_the_run_with_a_clear_error_and_loses_nothing(checkpoint: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs privileges")
    try:
        write_shards(str(tmp_path / "in"), cutouts_of(3000, labelled=False), 3000)
        arguments = command(
            "classify", "--input", str(tmp_path / "in"), "--checkpoint", checkpoint, "--output", str(disk / "run"),
            "--unit-rows", "1000",
        )  # fmt: skip
        said = tmp_path / "said.txt"  # a pipe would stay open for as long as any process of the driver's Ray
        with said.open("w") as file:
            full = subprocess.run(arguments, stdout=file, stderr=file, timeout=240, check=False)
        assert full.returncode == 1, said.read_text()
        assert "No space left" in said.read_text()
        assert "Started a local Ray" not in said.read_text(), "one Ray is enough, and nothing ends the other"
        assert not (disk / "run" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        with said.open("w") as file:
            done = subprocess.run(arguments, stdout=file, timeout=240, check=False)
        assert done.returncode == 0
        assert last_line(said.read_text())["rows_scored"] == 3000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_that_cannot_be_written_is_named(checkpoint: str, tmp_path: Path) -> None:
    write_shards(str(tmp_path / "in"), cutouts_of(10, labelled=False), 10)
    (tmp_path / "file").write_text("in the way")
    arguments = command(
        "classify",
        "--input",
        str(tmp_path / "in"),
        "--checkpoint",
        checkpoint,
        "--output",
        str(tmp_path / "file" / "run"),
    )
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert str(tmp_path / "file") in result.stderr
