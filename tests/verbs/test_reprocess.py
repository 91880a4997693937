"""`reprocess` on disk and on S3: only what changed is scored and written, and the result is that of a full rerun."""

from __future__ import annotations

import json
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
from deepshadows.outcomes import ExitCode, Summary
from deepshadows.settings import Publish, Reprocess
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs import classify, publish, reprocess
from tests.sky.test_shards import cutouts_of

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]
ROWS = 40
"""Of one shard."""


def sky_shard(number: int, *, look: int = 0, rows: int = ROWS, first_id: int | None = None) -> Cutouts:
    """A shard with objects of its own, in a patch of sky of its own; `look` gives other images of the same objects."""
    made = cutouts_of(rows, labelled=False)
    rng = np.random.default_rng(1000 * number + look)
    first = number * 1000 if first_id is None else first_id
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


def content(catalog: str) -> pa.Table:
    """The same catalogue is the same table (CONTRACT, equality)."""
    names = ["object_id", "ra", "dec", "logit", "p_lsbg", "p_lsbg_err", "flags"]
    parts = [read(catalog, names) for read in (collection.read_current, collection.read_unplaced)]
    return pa.concat_tables(parts).sort_by([("object_id", "ascending"), ("flags", "ascending"), ("logit", "ascending")])


def anew(place: str, checkpoint: str, name: str, **flags: Any) -> pa.Table:
    """What a full rerun gives: classify and publish, from nothing."""
    flags = {"duplicates": "fail", **flags}
    run = f"{place}/{name}-run"
    classify.run(
        classify.Classify(input=f"{place}/in", checkpoint=checkpoint, output=run, precision="exact", retries=0)
    )
    publish.run(Publish(run=(run,), catalog=f"{place}/{name}", partition_rows=ROWS, duplicates=flags["duplicates"]))
    return content(f"{place}/{name}")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("other"))
    save(folder, DeepShadowsNet(seed=4), Card(name="other", calibration=Calibration(slope=0.9, intercept=-0.2)))
    return folder


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
    assert content(f"{place}/cat").equals(anew(place, checkpoint, "full"))
    assert {entry.url: entry.etag for entry in storage.list_objects(f"{place}/cat/v0001")} == untouched
    left = {storage.relative(entry.url, place) for entry in storage.list_objects(f"{place}/cat/reprocess")}
    assert left == {"cat/reprocess/lease.json", "cat/reprocess/seen.json"}
    diff = json.loads(storage.read(f"{place}/cat/v0002/diff.json"))
    assert diff["units"] == {"present": 6, "scored_here": 2, "gone": 2, "quarantined": 0}
    assert len(diff["partitions"]["rewritten"]) == 2
    assert updated(place, checkpoint).figures["changed"] is False


def test_new_weights_score_everything_and_tell_who_changed_side(
    place: str, checkpoint: str, other_checkpoint: str
) -> None:
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
