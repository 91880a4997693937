"""`status` reads the store alone: what is done, left and quarantined of a run that was started elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepshadows import storage
from deepshadows.outcomes import UsageError
from deepshadows.run import lease
from deepshadows.settings import Classify, Status
from deepshadows.sky.shards import split, write_shard
from deepshadows.verbs import classify, status
from tests.sky.test_shards import cutouts_of


def told(run: str) -> dict[str, object]:
    summary = status.run(Status(run=run))
    names = ("state", "rows_done", "rows_quarantined", "rows_left", "units_done", "units_quarantined", "units_left")
    return {name: summary.figures[name] for name in names}


@pytest.mark.usefixtures("ray_local")
def test_done_left_and_quarantined_add_up(checkpoint: str, place: str) -> None:
    run = storage.join(place, "run")
    for number, part in enumerate(split(cutouts_of(500, labelled=False), 100)):
        write_shard(storage.join(place, "in", f"{number}.parquet"), part)
    storage.write(storage.join(place, "in", "bad.parquet"), b"not Parquet")
    classify.run(
        Classify(
            input=storage.join(place, "in"),
            checkpoint=checkpoint,
            output=run,
            precision="exact",
            unit_rows=100,
            retries=0,
        )
    )
    whole = {"rows_done": 500, "rows_quarantined": 0, "rows_left": 0}
    units = {"units_done": 5, "units_quarantined": 1, "units_left": 0}
    assert told(run) == {"state": "finished", **whole, **units}
    storage.delete(storage.join(run, "manifest.json"))
    for entry in storage.list_objects(storage.join(run, "scores"))[:2]:
        storage.delete(entry.url)
    left = {"rows_done": 300, "rows_left": 200, "units_done": 3, "units_left": 2}
    assert told(run) == {"state": "stopped", **whole, **units, **left}
    with lease.Lease(run, ttl_s=1):
        assert told(run)["state"] == "running"


def test_the_rate_is_that_of_the_store_s_times(tmp_path: Path) -> None:
    """Three units of 100 rows, 10 and 20 s after the first: 200 rows in 20 s; an hour before does not count."""
    from deepshadows.run.plan import Draft
    from deepshadows.run.record import RunRecord
    from deepshadows.run.units import make_unit

    units = [make_unit(kind="shard", url=f"{n}", etag="", size_bytes=1, rows=100) for n in range(5)]
    run = str(tmp_path)
    Draft(units).write(run, "x")
    record = RunRecord(
        run="x", fingerprint="f", inventory="i", plan_parts=1, settings={}, checkpoint={}, preprocessing={},
        id_type="int64", units_planned=5, rows_planned=500, versions={},
    )  # fmt: skip
    (tmp_path / "run.json").write_text(record.model_dump_json())
    for unit, at in zip(units, (0, 3600, 3610, 3620), strict=False):
        path = tmp_path / "scores" / unit.unit[:2] / f"{unit.unit}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (1_700_000_000 + at,) * 2)
    summary = status.run(Status(run=run))
    assert (summary.figures["images_per_s"], summary.figures["rows_left"]) == (10.0, 100)


def test_a_driver_that_hangs_is_not_called_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TTL_S", 1.5)
    stranger = {"token": "x", "generation": 0, "beat": 1, "host": "elsewhere", "pid": 1, "started": "1"}
    (tmp_path / "lease.json").write_text(json.dumps(stranger))
    began = time.monotonic()
    assert not lease.is_driven(str(tmp_path))
    assert time.monotonic() - began < 5


def test_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run there"):
        status.run(Status(run=str(tmp_path)))


def test_it_needs_no_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "deepshadows", "status", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["exit_code"] == 2
    assert not any(
        line.rsplit("|", 1)[-1].strip().split(".")[0] in ("ray", "torch") for line in done.stderr.splitlines()
    )
