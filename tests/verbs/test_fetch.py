"""`fetch` against a server that speaks the viewer's parameters: each object has an image or a reason, never a blank."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepshadows import settings, storage
from deepshadows.outcomes import ExitCode, Failure, InputError, StorageError, Summary, UsageError
from deepshadows.schema import Flag
from deepshadows.sky.public_lists import PUBLIC_LISTS, PublicList, blob_id
from deepshadows.sky.shards import read_shards
from deepshadows.verbs import cutouts, fetch
from deepshadows.verbs.paper.samples import read_sample
from deepshadows.verbs.polite_http import PoliteClient
from tests.viewer_server import ViewerServer

FAST: dict[str, Any] = {"requests_per_s": 100, "retries": 2, "backoff_s": 0.01, "timeout_s": 5.0}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[ViewerServer]:
    with ViewerServer() as viewer:
        yield viewer


def put_positions(url: str, count: int = 4, **more: Any) -> str:
    columns = {"object_id": range(count), "ra": ra_of(count), "dec": [-20.0] * count, **more}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    storage.write(url, sink.getvalue())
    return url


def ra_of(count: int) -> list[float]:
    return [30.0 + number / 8 for number in range(count)]


def run(server: ViewerServer, positions: str, output: str, **flags: Any) -> Summary:
    return fetch.run(
        settings.Fetch(what="cutouts", positions=positions, output=output, url=server.url, **{**FAST, **flags})
    )


def counts(summary: Summary) -> tuple[int, ...]:
    return tuple(summary.figures[name] for name in ("rows", "fetched", "present", "failed"))


def table(url: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(storage.open_arrow(url)).to_pylist()
    return rows


def images_in(output: str) -> list[str]:
    return [storage.name_of(entry.url) for entry in storage.list_objects(f"{output}/images")]


@pytest.mark.parametrize("form", ["jpeg", "fits"])
def test_every_object_gets_its_image(server: ViewerServer, place: str, form: str) -> None:
    positions = put_positions(f"{place}/p.parquet", label=[1, 0, None, 1])
    summary = run(server, positions, f"{place}/out", format=form)
    assert summary.exit_code == ExitCode.DONE
    assert counts(summary) == (4, 4, 0, 0)
    suffix = "jpg" if form == "jpeg" else "fits"
    assert images_in(f"{place}/out") == [f"{number}.{suffix}" for number in range(4)]
    kept = table(f"{place}/out/positions.parquet")
    assert [row["object_id"] for row in kept] == [0, 1, 2, 3]
    assert [row["file"] for row in kept] == [f"images/{number}.{suffix}" for number in range(4)]
    assert [row["label"] for row in kept] == [1, 0, None, 1]
    assert table(f"{place}/out/failed.parquet") == []
    found = read_shards(f"{place}/out/shards")
    assert found.label is not None
    assert found.label.tolist() == [1, 0, -1, 1]
    assert (found.fov_arcsec, found.stretch, found.ra.tolist()) == (33.5, "des-1", ra_of(4))
    assert (found.images[:, 32, 32] > found.images[:, 8, 48]).all(), "the object is in the middle"
    east_north, west_south = found.images[:, 32 - 11, 32 - 12], found.images[:, 32 + 11, 32 + 11]
    assert (east_north.mean(axis=1) > west_south.mean(axis=1) + 20).all(), "north is up and east is left"


@pytest.mark.parametrize(("survey", "stretch", "layer"), [("des", "des-1", "des-dr1"), ("hsc", "hsc-1", "hsc2")])
def test_pictures_and_fluxes_of_one_sky_agree(
    server: ViewerServer, tmp_path: Path, survey: str, stretch: str, layer: str
) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet")
    images = []
    for form in ("jpeg", "fits"):
        run(server, positions, f"{tmp_path}/{form}", format=form, survey=survey)
        found = read_shards(f"{tmp_path}/{form}/shards")
        assert found.stretch == stretch
        images.append(found.images.astype(float))
    assert {entry.parameters["layer"] for entry in server.received} == {layer}
    difference = images[0] - images[1]
    assert abs(difference.mean()) < 3, "blank sky and blobs have one level"
    for image, other in zip(*images, strict=True):
        assert np.corrcoef(image[20:44, 20:44].ravel(), other[20:44, 20:44].ravel())[0, 1] > 0.9


def test_fetched_fluxes_are_tiles_for_cutouts(server: ViewerServer, tmp_path: Path, ray_local: None) -> None:
    run(server, put_positions(f"{tmp_path}/p.parquet"), f"{tmp_path}/out", format="fits")
    cutouts.run(
        settings.Cutouts(
            input=f"{tmp_path}/out/images", detections=f"{tmp_path}/out/positions.parquet", output=f"{tmp_path}/again"
        )
    )
    found, again = read_shards(f"{tmp_path}/out/shards"), read_shards(f"{tmp_path}/again")
    again = again.take(np.argsort(again.object_id.to_numpy()))
    assert (found.images == again.images).all()
    assert (found.flags == again.flags).all()


def test_every_request_is_recorded(server: ViewerServer, tmp_path: Path) -> None:
    server.behaviour["30.0"] = ["500", "good"]
    run(server, put_positions(f"{tmp_path}/p.parquet", 2), f"{tmp_path}/out")
    rows = sorted(table(f"{tmp_path}/out/requests.parquet"), key=lambda row: (row["object_id"], row["number"]))
    assert [(row["object_id"], row["number"], row["status"]) for row in rows] == [
        ("0", 1, 500),
        ("0", 2, 200),
        ("1", 1, 200),
    ]
    sent = [entry.parameters for entry in server.received]
    for row in rows:
        parameters = {name: row[name] for name in ("ra", "dec", "layer", "zoom", "pixscale", "size", "bands")}
        assert {name: value for name, value in parameters.items() if value is not None} in sent
    body = (tmp_path / "out" / "images" / "1.jpg").read_bytes()
    assert (rows[2]["bytes"], rows[2]["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert rows[0]["reason"].startswith("HTTP 500")
    assert rows[0]["sha256"] is None
    assert all(row["at"].tzinfo is not None and row["seconds"] > 0 for row in rows)
    assert not (tmp_path / "out" / "journal").exists() or not list((tmp_path / "out" / "journal").iterdir())


@pytest.mark.parametrize(
    ("told", "form", "tries", "why"),
    [
        ("404", "jpeg", 1, "HTTP 404"),
        ("500", "jpeg", 3, "HTTP 500"),
        ("held", "jpeg", 3, "no whole answer within 0.8 s"),
        ("cut off", "jpeg", 3, "cut off"),
        ("ends early", "jpeg", 3, "no readable JPEG"),
        ("ends early", "fits", 3, "FITS"),
        ("html", "jpeg", 3, "text/html, not jpeg: Maintenance"),
        ("html", "fits", 3, "text/html"),
        ("page as picture", "jpeg", 3, "no readable JPEG"),
        ("small", "jpeg", 3, "(128, 128, 3)"),
        ("small", "fits", 3, "(3, 64, 64)"),
        ("elsewhere", "fits", 3, "another place"),
        ("blank", "jpeg", 1, "blank: the layer has no data there"),
        ("blank", "fits", 1, "blank: the layer has no data there"),
        ("no z", "jpeg", 1, "blank: the layer has no data there in at least one band"),
        ("no z", "fits", 1, "blank: the layer has no data there in at least one band"),
        ("half blank", "jpeg", 1, "was never observed"),
        ("no overlap", "fits", 1, "does not reach there"),
    ],
)
def test_what_is_no_image_is_a_failure_with_its_reason(
    server: ViewerServer, tmp_path: Path, told: str, form: str, tries: int, why: str
) -> None:
    server.behaviour["30.125"] = [told]
    positions = put_positions(f"{tmp_path}/p.parquet", 3)
    summary = run(
        server, positions, f"{tmp_path}/out", format=form, timeout_s=0.8 if told == "held" else 5.0, threads=2
    )
    assert summary.exit_code == ExitCode.EXCEPTIONS
    assert counts(summary) == (3, 2, 0, 1)
    (failed,) = table(f"{tmp_path}/out/failed.parquet")
    assert (failed["object_id"], failed["ra"]) == (1, 30.125)
    assert why in failed["reason"]
    assert why in "\n".join(summary.text)
    assert server.asked_for().count("30.125") == tries
    suffix = "jpg" if form == "jpeg" else "fits"
    assert images_in(f"{tmp_path}/out") == [f"0.{suffix}", f"2.{suffix}"]
    assert read_shards(f"{tmp_path}/out/shards").object_id.to_pylist() == [0, 2]


def test_a_field_with_an_unobserved_corner_is_marked(server: ViewerServer, tmp_path: Path) -> None:
    server.behaviour["30.0"] = ["corner blank"]
    positions = put_positions(f"{tmp_path}/p.parquet", 2)
    for form in ("jpeg", "fits"):
        assert run(server, positions, f"{tmp_path}/{form}", format=form).figures["failed"] == 0
        server._seen.clear()
        flags = read_shards(f"{tmp_path}/{form}/shards").flags & Flag.SOME_MASKED.bit
        assert (flags != 0).tolist() == [True, False]


def test_a_rerun_asks_for_what_is_missing_only(server: ViewerServer, place: str) -> None:
    server.behaviour["30.125"] = ["404", "good"]
    positions = put_positions(f"{place}/p.parquet")
    assert counts(run(server, positions, f"{place}/out")) == (4, 3, 0, 1)
    first = read_shards(f"{place}/out/shards")
    server.received.clear()
    storage.delete(f"{place}/out/images/3.jpg")
    assert counts(run(server, positions, f"{place}/out")) == (4, 2, 2, 0)
    assert sorted(server.asked_for()) == ["30.125", "30.375"]
    server.received.clear()
    assert counts(run(server, positions, f"{place}/out")) == (4, 0, 4, 0)
    assert server.received == []
    assert table(f"{place}/out/failed.parquet") == []
    assert len(table(f"{place}/out/requests.parquet")) == 6, "all tries of all runs"
    last = read_shards(f"{place}/out/shards")
    assert last.object_id.to_pylist() == [0, 1, 2, 3]
    assert (last.images[[0, 2, 3]] == first.images).all()


def test_an_object_that_moved_is_asked_for_again(server: ViewerServer, tmp_path: Path) -> None:
    run(server, put_positions(f"{tmp_path}/p.parquet"), f"{tmp_path}/out")
    before = (tmp_path / "out" / "images" / "2.jpg").read_bytes()
    server.received.clear()
    server.behaviour["31.0"] = ["404", "good"]
    moved = put_positions(f"{tmp_path}/p.parquet", ra=[30.0, 30.125, 31.0, 30.375])
    assert counts(run(server, moved, f"{tmp_path}/out")) == (4, 0, 3, 1)
    assert not (tmp_path / "out" / "images" / "2.jpg").exists(), "no image of another place under this name"
    assert counts(run(server, moved, f"{tmp_path}/out")) == (4, 1, 3, 0)
    assert server.asked_for() == ["31.0", "31.0"]
    assert (tmp_path / "out" / "images" / "2.jpg").read_bytes() != before


def test_a_killed_fetch_goes_on_where_it_was(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet", 260)
    server.behaviour[str(ra_of(260)[-1])] = ["held", "good"]
    words = [sys.executable, "-m", "deepshadows", "fetch", "cutouts", "--positions", positions, "--url", server.url]
    words += ["--output", f"{tmp_path}/out", "--size-pix", "16", "--requests-per-s", "100", "--threads", "8", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        journal = tmp_path / "out" / "journal"
        deadline = time.monotonic() + 60
        try:
            while len(server.received) < 260 or not journal.exists():
                assert time.monotonic() < deadline, "the fetch does not come to its last object"
                server.released.wait(0.02)
                assert process.poll() is None
        finally:
            process.kill()
        process.communicate()
    kept = sum(len(path.read_text().splitlines()) for path in journal.glob("*.jsonl"))
    assert kept > 0
    server.received.clear()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    record = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, record["rows"], record["failed"], record["present"]) == (0, 260, 0, kept)
    assert len(server.received) == 260 - kept
    assert len(images_in(f"{tmp_path}/out")) == 260


def test_a_fetch_killed_before_its_journal_was_gone_records_no_try_twice(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet", 3)
    run(server, positions, f"{tmp_path}/out")
    log = f"{tmp_path}/out/requests.parquet"
    rows = table(log)
    extra = {**rows[0], "object_id": "9", "file": "images/9.jpg", "reason": "HTTP 500"}
    lines = [json.dumps({**row, "at": row["at"].isoformat()}) for row in (*rows, extra)]
    storage.write(f"{tmp_path}/out/journal/left.jsonl", "\n".join(lines).encode())
    assert counts(run(server, positions, f"{tmp_path}/out")) == (3, 0, 3, 0)
    assert table(log) == [*rows, extra]
    assert storage.list_objects(f"{tmp_path}/out/journal") == []


@pytest.mark.parametrize(
    "flags", [{"survey": "hsc"}, {"size_pix": 128}, {"format": "fits"}, {"zoom": 14}, {"layer": "ls-dr9"}]
)
def test_a_folder_belongs_to_one_request(server: ViewerServer, tmp_path: Path, flags: dict[str, Any]) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet", 1)
    run(server, positions, f"{tmp_path}/out")
    with pytest.raises(UsageError, match="another request"):
        run(server, positions, f"{tmp_path}/out", **flags)
    assert len(server.received) == 1


def test_a_folder_of_something_else_is_refused(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(f"{tmp_path}/out/p.parquet", 1)
    with pytest.raises(UsageError, match="empty --output"):
        run(server, positions, f"{tmp_path}/out")


def test_rows_that_cannot_be_asked_for_are_told(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(
        f"{tmp_path}/p.parquet", 6, object_id=["a", "b", "a", "c", "d", "e"],
        ra=[30.0, np.nan, 30.25, 400.0, 30.5, 30.625], dec=[0.0, 0.0, 0.0, 0.0, -91.0, 0.0],
    )  # fmt: skip
    summary = run(server, positions, f"{tmp_path}/out")
    assert counts(summary) == (6, 2, 0, 4)
    assert sorted(server.asked_for()) == ["30.0", "30.625"]
    reasons = {row["object_id"]: row["reason"] for row in table(f"{tmp_path}/out/failed.parquet")}
    assert reasons["a"] == "an earlier row has this object_id"
    assert all("no usable position" in reasons[name] for name in "bcd")


def test_wild_identifiers_stay_in_the_folder(server: ViewerServer, tmp_path: Path) -> None:
    ids = ["../../escape", "a/b", "ü", "_x"]
    run(server, put_positions(f"{tmp_path}/p.parquet", object_id=ids), f"{tmp_path}/out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"p.parquet", "out"}
    kept = table(f"{tmp_path}/out/positions.parquet")
    assert [row["object_id"] for row in kept] == ids
    for row in kept:
        with Image.open(tmp_path / "out" / row["file"]) as picture:
            assert picture.size == (256, 256)
    assert read_shards(f"{tmp_path}/out/shards").object_id.to_pylist() == ids


def test_the_names_of_the_columns_are_the_users(server: ViewerServer, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("ID,RAJ2000,DEJ2000\n007,30.0,-1.5\n008,30.125,-1.5\n")
    run(
        server, f"{tmp_path}/p.csv", f"{tmp_path}/out",
        id_column="ID", ra_column="RAJ2000", dec_column="DEJ2000",
    )  # fmt: skip
    assert images_in(f"{tmp_path}/out") == ["007.jpg", "008.jpg"]
    with pytest.raises(InputError, match="no column ra, dec; it has ID, RAJ2000"):
        run(server, f"{tmp_path}/p.csv", f"{tmp_path}/other")
    with pytest.raises(InputError, match="no column name"):
        run(
            server,
            f"{tmp_path}/p.csv",
            f"{tmp_path}/other",
            id_column="name",
            ra_column="RAJ2000",
            dec_column="DEJ2000",
        )


def test_positions_without_identifiers_are_named_by_place(server: ViewerServer, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(",ra,dec\n0,30.0,-1.5\n1,30.125,1.5\n2,30.0,-1.5\n")
    summary = run(server, f"{tmp_path}/p.csv", f"{tmp_path}/out")
    assert images_in(f"{tmp_path}/out") == ["30.000000-1.500000.jpg", "30.125000+1.500000.jpg"]
    assert counts(summary) == (3, 2, 0, 1), "the public lists hold positions twice"


def test_lists_of_one_class_each_become_a_sample_for_the_experiments(server: ViewerServer, tmp_path: Path) -> None:
    """As Datasets/README.md has it."""
    for label, name in ((1, "lsbgs"), (0, "artifacts")):
        lines = [f"{number},{ra},{-20 - label}.5" for number, ra in enumerate(ra_of(20))]
        (tmp_path / f"{name}.csv").write_text("\n".join([",ra,dec", *lines]) + "\n")
        run(server, f"{tmp_path}/{name}.csv", f"{tmp_path}/images/{name}", label=label)
        assert {row["label"] for row in table(f"{tmp_path}/images/{name}/positions.parquet")} == {label}
        shutil.copytree(tmp_path / "images" / name / "shards", tmp_path / "sample" / name)
    sample = read_sample(f"{tmp_path}/sample", "des", most=100, split="sky", seed=1, origin="lists")
    assert (len(sample.rows_of(1)), len(sample.rows_of(0)), sample.features) == (20, 20, None)


def test_a_table_with_labels_takes_none_from_the_flag(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet", label=[1, 0, None, 1])
    with pytest.raises(UsageError, match=r"p\.parquet: the table has labels of its own.* leave out --label 0"):
        run(server, positions, f"{tmp_path}/out", label=0)
    with pytest.raises(UsageError, match="label"):
        settings.Fetch.resolve({"what": "cutouts", "positions": "p", "output": "o", "label": 2}, "test")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"object_id": [], "ra": [], "dec": []}, "no rows"),
        ({"object_id": [1], "ra": [1.0], "dec": [1.0], "label": ["LSBG"]}, "label"),
        ({"object_id": [1], "ra": ["1:00"], "dec": [1.0]}, "float64"),
        ({"object_id": [1.5], "ra": [1.0], "dec": [1.0]}, "object_id"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    server: ViewerServer, tmp_path: Path, columns: dict[str, Any], why: str
) -> None:
    kinds = {"object_id": pa.int64(), "ra": pa.float64(), "dec": pa.float64()} if not columns["ra"] else {}
    pq.write_table(
        pa.table({name: pa.array(value, kinds.get(name)) for name, value in columns.items()}), tmp_path / "p.parquet"
    )
    with pytest.raises(InputError, match=why):
        run(server, f"{tmp_path}/p.parquet", f"{tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_a_server_that_goes_away_ends_the_fetch_and_keeps_what_came(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet", 20)
    for ra in ra_of(20)[4:]:
        server.behaviour[str(ra)] = ["cut connection"]
    with pytest.raises(StorageError, match="in a row"):
        run(server, positions, f"{tmp_path}/out", threads=1, retries=0, size_pix=16)
    server.behaviour.clear()
    server.received.clear()
    assert counts(run(server, positions, f"{tmp_path}/out", size_pix=16)) == (20, 16, 4, 0)
    assert not set(server.asked_for()) & set(map(str, ra_of(4)))


def test_a_changed_image_is_not_made_a_cutout(server: ViewerServer, tmp_path: Path) -> None:
    positions = put_positions(f"{tmp_path}/p.parquet", 2)
    run(server, positions, f"{tmp_path}/out")
    path = tmp_path / "out" / "images" / "1.jpg"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(InputError, match=r"1\.jpg: not what was fetched"):
        run(server, positions, f"{tmp_path}/out")


def test_fewer_objects_leave_no_old_shards(server: ViewerServer, tmp_path: Path) -> None:
    run(server, put_positions(f"{tmp_path}/p.parquet", 5), f"{tmp_path}/out", shard_rows=2)
    assert len(storage.list_objects(f"{tmp_path}/out/shards")) == 3
    run(server, put_positions(f"{tmp_path}/p.parquet", 3), f"{tmp_path}/out", shard_rows=2)
    assert read_shards(f"{tmp_path}/out/shards").object_id.to_pylist() == [0, 1, 2]


def lists(server: ViewerServer) -> list[PublicList]:
    """Two small lists and what the server has of them."""
    made = []
    for name, data in (("a.csv", b"ra,dec\n1,2\n3,4\n"), ("b.dat", b" 1 2 3\n")):
        server.files[f"/lists/{name}"] = data
        made.append(PublicList(name=name, what="", rows=9, columns=9, header=name == "a.csv", blob_id=blob_id(data)))
    return made


def datasets(server: ViewerServer, output: Path, wanted: list[PublicList]) -> Summary:
    url = server.url.removesuffix("/viewer") + "/lists"
    chosen = settings.Fetch(what="datasets", output=str(output), url=url, **FAST)
    client = PoliteClient(per_second=100, retries=2, timeout_s=5, backoff_s=0.01)
    return fetch.fetch_datasets(chosen, client, wanted)


def test_lists_are_downloaded_once(server: ViewerServer, tmp_path: Path) -> None:
    wanted = lists(server)
    server.behaviour["/lists/a.csv"] = ["429", "cut off", "good"]
    server.retry_after = "0"
    assert counts(datasets(server, tmp_path, wanted)) == (2, 2, 0, 0)
    assert (tmp_path / "a.csv").read_bytes() == server.files["/lists/a.csv"]
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert [(file["rows"], file["columns"]) for file in found["files"]] == [(2, 2), (1, 3)]
    server.received.clear()
    assert counts(datasets(server, tmp_path, wanted)) == (2, 0, 2, 0)
    assert server.received == []
    (tmp_path / "b.dat").write_bytes(b"damaged")
    assert counts(datasets(server, tmp_path, wanted)) == (2, 1, 1, 0)
    assert (tmp_path / "b.dat").read_bytes() == server.files["/lists/b.dat"]


def test_the_two_lists_of_features_become_one_labelled_table(server: ViewerServer, tmp_path: Path) -> None:
    names = ",".join(PUBLIC_LISTS[-1].column_names or ())
    wanted = []
    for name, data in (
        (
            "hsc_LSBGs.dat",
            b"  7 150.1 -1.50 25.8 0.4 21.03 0.2 0.92 1.29  7.15 0.8 0.57 0.3 0.59 0.1 0.022 0.015 0.011 \n",
        ),
        ("hsc_artifacts.csv", f"{names}\n242.99,44.4,19.46,22.35,7.45,4.7,0.51,0.04,0.2,0.04,0.03,0.02\n".encode()),
    ):
        server.files[f"/lists/{name}"] = data
        wanted.append(PublicList(name=name, what="", rows=1, columns=1, blob_id=blob_id(data)))
    datasets(server, tmp_path, wanted)
    assert (tmp_path / "hsc_features_labelled.csv").read_text() == (
        f"{names},label,greco_id\n"
        "150.1,-1.50,25.8,21.03,7.15,0.57,0.59,1.29,0.92,0.022,0.015,0.011,1,7\n"
        "242.99,44.4,19.46,22.35,7.45,4.7,0.51,0.04,0.2,0.04,0.03,0.02,0,\n"
    )
    (tmp_path / "hsc_features_labelled.csv").unlink()
    assert counts(datasets(server, tmp_path, wanted)) == (2, 0, 2, 0)
    assert (tmp_path / "hsc_features_labelled.csv").exists()


def test_a_list_of_other_content_is_refused_and_both_ids_named(server: ViewerServer, tmp_path: Path) -> None:
    wanted = PUBLIC_LISTS[0]
    server.files[f"/{wanted.name}"] = b"ra,dec\n"
    url = server.url.removesuffix("/viewer")
    with pytest.raises(InputError) as caught:
        fetch.run(settings.Fetch(what="datasets", output=str(tmp_path), url=url, **FAST))
    assert wanted.blob_id in str(caught.value)
    assert blob_id(b"ra,dec\n") in str(caught.value)
    assert not (tmp_path / wanted.name).exists()


def test_a_list_that_is_not_there_is_named(server: ViewerServer, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"Baseline_training\.csv: cannot be downloaded \(HTTP 404"):
        fetch.run(settings.Fetch(what="datasets", output=str(tmp_path), url=server.url.removesuffix("/viewer"), **FAST))
