"""`reprocess` on disk and on S3: only what changed is scored and written, and the result is that of a full rerun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.model.card import Calibration, Card
from deepshadows.model.checkpoint import save
from deepshadows.model.network import DeepShadowsNet
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import ExitCode, HeldError, InputError, Summary, UsageError
from deepshadows.run.lease import Lease
from deepshadows.run.scores import score_table
from deepshadows.settings import Classify, Publish, Reprocess, Versions
from deepshadows.sky.shards import Cutouts, list_shards, read_shards, write_shard
from deepshadows.verbs import classify, publish, reprocess, versions
from tests.sky.test_shards import cutouts_of
from tests.sky.test_tile_index import Reads
from tests.sky.tile_files import write_tile

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]
ROWS = 40
"""Of one shard."""
COUNTS = (
    *(f"rows_{name}" for name in ("planned", "scored", "unscored", "quarantined")),
    *(f"units_{name}" for name in ("planned", "done", "quarantined")),
)


def sky_shard(number: int, *, look: int = 0, rows: int = ROWS) -> Cutouts:
    """A shard with objects of its own, in a patch of sky of its own; `look` gives other images of the same objects."""
    made = cutouts_of(rows, labelled=False)
    rng = np.random.default_rng(1000 * number + look)
    first = number * 1000
    where = np.random.default_rng(number)
    return Cutouts(
        **{
            **vars(made),
            "object_id": pa.array(range(first, first + rows), pa.int64()),
            "ra": 45.0 * (number % 8) + 22 + where.uniform(0, 0.5, rows),
            "dec": (-1) ** (number // 8) * 60 + where.uniform(0, 0.5, rows),
            "images": rng.integers(0, 255, made.images.shape, dtype=np.uint8),
        }
    )


def put(place: str, number: int, **changes: Any) -> None:
    write_shard(f"{place}/in/{number:03d}.parquet", sky_shard(number, **changes))


def updated(place: str, checkpoint: str, **flags: Any) -> Summary:
    flags = {"precision": "exact", "partition_rows": ROWS, **flags}
    return reprocess.run(Reprocess(input=f"{place}/in", catalog=f"{place}/cat", checkpoint=checkpoint, **flags))


def counts(summary: Summary) -> list[int]:
    """Those that every night's record has, whether anything has changed or not."""
    return [summary.figures[name] for name in COUNTS]


def spoil(shard: Path) -> None:
    """Damage the images of a shard; its footer and its identifiers stay readable."""
    data, images = bytearray(shard.read_bytes()), pq.ParquetFile(shard).schema_arrow.get_field_index("image")
    offset = pq.ParquetFile(shard).metadata.row_group(0).column(images).data_page_offset
    data[offset : offset + 16] = b"\xff" * 16
    shard.write_bytes(data)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def told_of(folder: Path, told: tuple[str, ...] | str) -> list[int]:
    """Ids of quarantined rows in `folder`, which `told` names; it has a record with a reason of one unit."""
    assert f"{folder}/rejects.parquet" in str(told) and f"{folder}/quarantine/" in str(told)
    (record,) = [json.loads(path.read_text()) for path in (folder / "quarantine").iterdir()]
    rejects = pq.read_table(folder / "rejects.parquet")
    assert set(rejects["unit"].to_pylist()) == {record["unit"]} and record["reason"]
    return list(rejects["object_id"].to_pylist())


def content(catalog: str) -> pa.Table:
    """The same catalogue is the same table (CONTRACT, equality)."""
    names = ["object_id", "ra", "dec", "logit", "p_lsbg", "p_lsbg_err", "flags"]
    parts = [read(catalog, names) for read in (collection.read_current, collection.read_unplaced)]
    return pa.concat_tables(parts).sort_by([("object_id", "ascending"), ("flags", "ascending"), ("logit", "ascending")])


def anew(place: str, checkpoint: str, name: str, **flags: Any) -> pa.Table:
    """What a full rerun gives: classify and publish, from nothing."""
    run = f"{place}/{name}-run"
    classify.run(Classify(input=f"{place}/in", checkpoint=checkpoint, output=run, precision="exact", **flags))
    publish.run(Publish(run=(run,), catalog=f"{place}/{name}", partition_rows=ROWS))
    return content(f"{place}/{name}")


def scored_one_by_one(place: str, checkpoint: str) -> pa.Table:
    """Each shard through the network in this process."""
    scorer = load_scorer(checkpoint, precision="exact", threads=2)
    tables = []
    for shard in list_shards(f"{place}/in"):
        cutouts = read_shards(shard.url)
        scores = scorer.score(cutouts.images)
        tables.append(
            score_table(
                cutouts.object_id, cutouts.ra, cutouts.dec, scores.logits, scores.p_lsbg, cutouts.flags,
                unit="", run="", p_lsbg_err=scores.p_lsbg_err,
            )
        )  # fmt: skip
    table = pa.concat_tables(tables).drop_columns(["unit", "run"]).replace_schema_metadata(None)
    return table.sort_by([("object_id", "ascending"), ("flags", "ascending"), ("logit", "ascending")])


def test_only_what_changed_is_scored_and_written(place: str, checkpoint: str) -> None:
    for number in range(6):
        put(place, number)
    first = updated(place, checkpoint)
    assert first.exit_code == ExitCode.DONE
    assert (first.figures["version"], first.figures["units_scored_here"]) == ("v0001", 6)
    untouched = {entry.url: entry.etag for entry in storage.list_objects(f"{place}/cat/v0001")}
    put(place, 6)
    put(place, 1, look=1)
    storage.delete(f"{place}/in/003.parquet")
    second = updated(place, checkpoint)
    named = ("version", "version_before", "units_scored_here", "units_gone", "partitions_written", "partitions_copied")
    assert [second.figures[name] for name in named] == ["v0002", "v0001", 2, 2, 2, 4]
    assert [second.figures[f"objects_{name}"] for name in ("new", "gone", "rescored", "unchanged")] == [40, 40, 40, 160]
    assert content(f"{place}/cat").equals(scored_one_by_one(place, checkpoint))
    assert {entry.url: entry.etag for entry in storage.list_objects(f"{place}/cat/v0001")} == untouched
    left = {storage.relative(entry.url, place) for entry in storage.list_objects(f"{place}/cat/reprocess")}
    assert left == {"cat/reprocess/lease.json", "cat/reprocess/seen.json"}
    diff = json.loads(storage.read(f"{place}/cat/v0002/diff.json"))
    assert diff["units"] == {"present": 6, "scored_here": 2, "gone": 2, "quarantined": 0}
    assert len(diff["partitions"]["rewritten"]) == 2
    quiet = updated(place, checkpoint)
    assert quiet.figures["changed"] is False
    assert counts(quiet) == counts(second)


@pytest.mark.slow
def test_new_weights_score_everything_and_tell_who_changed_side(
    tmp_path: Path, checkpoint: str, other_checkpoint: str
) -> None:
    place = str(tmp_path)
    for number in range(3):
        put(place, number)
    updated(place, checkpoint)
    before = collection.read_current(f"{place}/cat", ["object_id", "p_lsbg"])
    threshold = float(np.median(before["p_lsbg"].to_numpy()))
    summary = updated(place, other_checkpoint, threshold=threshold)
    assert summary.figures["units_scored_here"] == 3
    assert content(f"{place}/cat").equals(anew(place, other_checkpoint, "full"))
    now = collection.read_current(f"{place}/cat", ["object_id", "p_lsbg"])
    pair = before.join(now, "object_id", right_suffix="_now").sort_by("object_id")
    above, above_now = (pair[name].to_numpy() >= np.float32(threshold) for name in ("p_lsbg", "p_lsbg_now"))
    up, down = (pair["object_id"].to_numpy()[rows].tolist() for rows in (~above & above_now, above & ~above_now))
    assert (summary.figures["objects_up"], summary.figures["objects_down"]) == (len(up), len(down))
    tables = [
        pq.read_table(storage.open_arrow(entry.url)) for entry in storage.list_objects(f"{place}/cat/v0002/changes")
    ]
    changed = pa.concat_tables(tables).to_pylist() if tables else []
    for change, ids in (("up", up), ("down", down)):
        assert sorted(row["object_id"] for row in changed if row["change"] == change) == ids
    assert up or down, "this test shows nothing where nobody changed side"
    assert sum(json.loads(storage.read(f"{place}/cat/v0002/diff.json"))["objects"]["shifts"]) == 120


@pytest.mark.slow
def test_a_tile_that_comes_takes_detections_from_its_neighbour(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each detection belongs to the tile where it lies deepest inside: the units of a neighbour change with a tile.

    Headers of tiles that were there before are not read again.
    """
    place = str(tmp_path)
    wcs = write_tile(tmp_path / "in", "A")
    rng = np.random.default_rng(3)
    ra, dec = wcs.all_pix2world(rng.uniform(0, 700, 60), rng.uniform(20, 280, 60), 0)

    def detect(rows: int) -> dict[str, str]:
        table = {"object_id": list(range(rows)), "ra": ra[:rows] % 360, "dec": dec[:rows]}
        pq.write_table(pa.table(table), tmp_path / "detections.parquet")
        return {"detections": str(tmp_path / "detections.parquet")}

    first = updated(place, checkpoint, **detect(50))
    assert first.figures["rows_unscored"] > 0, "detections off tile A"
    write_tile(tmp_path / "in", "B", ra=30.0 - 200 * 0.263 / 3600 / np.cos(np.radians(30)))
    write_tile(tmp_path / "in", "far", ra=90.0)
    reads = Reads(monkeypatch)
    second = updated(place, checkpoint, **detect(60))
    assert {Path(url).name[0] for url in reads.requests} == {"B", "f"}
    assert second.figures["units_gone"] >= 2, "tile A and what lay off it"
    assert content(f"{place}/cat").equals(anew(place, checkpoint, "full", **detect(60)))
    for path in (tmp_path / "in").glob("B*"):
        path.unlink()
    assert updated(place, checkpoint, **detect(50)).figures["rows_planned"] == 50
    assert content(f"{place}/cat").equals(anew(place, checkpoint, "again", **detect(50)))


def test_what_cannot_be_read_is_tried_again_each_time(tmp_path: Path, checkpoint: str) -> None:
    place, damaged = str(tmp_path), tmp_path / "in" / "001.parquet"
    catalog, lost = tmp_path / "cat", list(range(1000, 1000 + ROWS))
    put(place, 1)
    whole = damaged.read_bytes()
    spoil(damaged)
    with pytest.raises(InputError, match="nothing in it can be scored") as nothing:
        updated(place, checkpoint, retries=0)
    assert told_of(catalog / "reprocess" / "last", str(nothing.value)) == lost
    assert names_in(catalog / "reprocess") == {"lease.json", "last"}, "it is tried again"
    put(place, 0)
    first = updated(place, checkpoint, retries=0)
    assert (first.exit_code, counts(first)) == (ExitCode.EXCEPTIONS, [80, 40, 0, 40, 2, 1, 1])
    assert any("001.parquet" in line for line in first.text)
    assert told_of(catalog / "v0001", first.text) == lost
    assert not (catalog / "reprocess" / "last").exists()
    again = updated(place, checkpoint, retries=0)
    assert (again.exit_code, again.figures["changed"], again.figures["version"]) == (3, False, "v0001")
    assert any("001.parquet" in line for line in again.text)
    assert counts(again) == counts(first)
    assert told_of(catalog / "reprocess" / "last", again.text) == lost
    with Lease(f"{place}/cat/reprocess", ttl_s=3.0), pytest.raises(HeldError, match="another driver"):
        updated(place, checkpoint)
    damaged.write_bytes(whole)
    healed = updated(place, checkpoint)
    assert (healed.exit_code, healed.figures["version"], healed.figures["units_scored_here"]) == (0, "v0002", 1)
    assert content(f"{place}/cat").equals(anew(place, checkpoint, "full"))
    assert names_in(catalog / "reprocess") == {"lease.json", "seen.json"}
    assert not names_in(catalog / "v0002") & {"quarantine", "rejects.parquet"}
    versions.run(Versions(catalog=str(catalog), expire=1))
    assert names_in(catalog / "v0001") == {"claim.json"}


def test_a_catalogue_that_an_older_deepshadows_saw_last_has_its_counts(tmp_path: Path, checkpoint: str) -> None:
    put(str(tmp_path), 0)
    first, seen = updated(str(tmp_path), checkpoint), tmp_path / "cat" / "reprocess" / "seen.json"
    known = json.loads(seen.read_text())
    seen.write_text(json.dumps({name: known[name] for name in ("look", "version", "quarantined")}))
    again = updated(str(tmp_path), checkpoint)
    assert (again.figures["changed"], again.figures["version"]) == (False, "v0001")
    assert counts(again) == counts(first)
    assert json.loads(seen.read_text()) == known


def test_drift_fails_where_it_is_asked_to(tmp_path: Path) -> None:
    """Noise and more noise is no drift; images without any light are."""
    place, checkpoint = str(tmp_path), str(tmp_path / "steep")
    save(checkpoint, DeepShadowsNet(seed=3), Card(name="steep", calibration=Calibration(slope=20.0)))
    for number in range(2):
        put(place, number, rows=320)
    first = updated(place, checkpoint, partition_rows=400, fail_on_drift=True)
    assert (first.exit_code, first.figures["drift"]) == (ExitCode.DONE, "not judged")
    put(place, 2, rows=320)
    second = updated(place, checkpoint, partition_rows=400, fail_on_drift=True)
    assert (second.exit_code, second.figures["drift"]) == (ExitCode.DONE, "stable")
    dark = sky_shard(3, rows=320)
    write_shard(f"{place}/in/003.parquet", Cutouts(**{**vars(dark), "images": np.zeros_like(dark.images)}))
    third = updated(place, checkpoint, partition_rows=400, fail_on_drift=True)
    assert (third.exit_code, third.figures["version"]) == (ExitCode.DRIFT, "v0003")
    assert any(line.startswith("DRIFT: scores") for line in third.text)
    assert any("--rollback v0002" in line for line in third.text)
    told = json.loads(storage.read(f"{place}/cat/v0003/drift.json"))
    assert told["verdict"] == "drift" and any(finding["alarm"] for finding in told["findings"])
    again = updated(place, checkpoint, partition_rows=400, fail_on_drift=True)  # as a job that failed is repeated
    assert (again.exit_code, again.figures["changed"], again.figures["version"]) == (ExitCode.DRIFT, False, "v0003")
    assert again.text[1:] == tuple(line for line in third.text if line.startswith(("DRIFT", "to go back")))
    assert updated(place, checkpoint, partition_rows=400).exit_code == ExitCode.DONE
    versions.run(Versions(catalog=f"{place}/cat", rollback="v0002"))
    for _ in range(2):  # what was taken back does not come again by itself
        back = updated(place, checkpoint, partition_rows=400, fail_on_drift=True)
        assert (back.exit_code, back.figures["changed"], back.figures["version"]) == (ExitCode.DONE, False, "v0002")
        assert "rollback v0003" in back.text[1]
        assert counts(back) == counts(second)
    put(place, 4, rows=320)
    fourth = updated(place, checkpoint, partition_rows=400)
    assert (fourth.figures["version"], fourth.figures["version_before"]) == ("v0004", "v0002")


def test_a_published_version_is_gone_on_from(tmp_path: Path, checkpoint: str) -> None:
    """What `classify` scored and `publish` wrote is not scored again; `publish` too tells what changed."""
    place = str(tmp_path)
    put(place, 0)
    put(place, 1)
    anew(place, checkpoint, "cat")
    assert updated(place, checkpoint).figures["units_scored_here"] == 0
    put(place, 2)
    summary = updated(place, checkpoint)
    assert [summary.figures[name] for name in ("version", "units_scored_here", "objects_new")] == ["v0002", 1, 40]
    before = content(f"{place}/cat")
    (tmp_path / "cat-run").rename(tmp_path / "old-run")
    publish.run(Publish(run=(f"{place}/old-run",), catalog=f"{place}/cat"))
    diff = json.loads(storage.read(f"{place}/cat/v0003/diff.json"))
    assert (diff["version_before"], diff["objects"]["gone"], diff["objects"]["unchanged"]) == ("v0002", 40, 80)
    assert updated(place, checkpoint).figures["units_scored_here"] == 1
    assert content(f"{place}/cat").equals(before)


def test_an_input_that_has_gone_empties_no_catalogue(tmp_path: Path, checkpoint: str) -> None:
    with pytest.raises(UsageError, match="no cut-out shards"):
        updated(str(tmp_path), checkpoint)
    assert collection.read_pointer(f"{tmp_path}/cat") is None
