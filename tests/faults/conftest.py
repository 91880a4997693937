"""A small survey, its undisturbed catalogue, and drivers to disturb."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshadows import storage
from deepshadows.outcomes import ExitCode, StorageError
from deepshadows.run.manifest import read_manifest, score_objects
from deepshadows.run.plan import Plan
from deepshadows.run.record import read_record
from deepshadows.sky.shards import split, write_shard
from tests.faults.proxy import Proxy
from tests.faults.ray_nodes import RayNodes
from tests.seaweed import SeaweedFS
from tests.sky.test_shards import cutouts_of
from tests.verbs.conftest import checkpoint  # noqa: F401 -- the fixture

ROWS, UNIT_ROWS = 2400, 100
UNITS = ROWS // UNIT_ROWS
BUCKET = "s3://faults"
START_LIMIT_S = 150.0
POLL_S = 0.02


class Driver:
    """`deepshadows ...` in a process of its own."""

    def __init__(self, words: list[str], environment: dict[str, str], target: str) -> None:
        self.target = target
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deepshadows", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""

    def until(self, units: int) -> None:
        """Wait until that many units are committed."""
        deadline = time.monotonic() + START_LIMIT_S
        while count_scores(self.target) < units:
            assert time.monotonic() < deadline, f"fewer than {units} units after {START_LIMIT_S} s"
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(POLL_S)

    def end(self, limit_s: float = 200) -> dict[str, Any]:
        """The last line of its output; within bounded time, and with the exit code that the line says."""
        try:
            out, self.log = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            raise AssertionError(f"it hangs: {self.process.communicate()[1][-2000:]}") from error
        record: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert self.process.returncode == record["exit_code"], self.log
        return record

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def count_scores(target: str) -> int:
    try:
        return len(storage.list_objects(storage.join(target, "scores"), (".parquet",)))
    except StorageError:  # the store is the one that is disturbed
        return -1


def catalogue(target: str) -> pa.Table:
    """What readers of a finished run see, sorted; each planned row once, and the books in order."""
    manifest = read_manifest(target)
    record = read_record(target)
    assert record is not None
    planned = list(Plan(target, record))
    assert sum(unit.rows for unit in planned) == manifest.rows_planned
    urls = [score.url for block in score_objects(target, manifest) for score in block]
    units = [storage.name_of(url).removesuffix(".parquet") for url in urls]
    assert sorted(units) == sorted(unit.unit for unit in planned)
    table = pa.concat_tables(pq.read_table(storage.open_arrow(storage.join(target, url))) for url in urls)
    assert len(set(table["object_id"].to_pylist())) == table.num_rows == manifest.rows_planned
    return table.sort_by("object_id").drop_columns(["run", "unit"])


@dataclass
class Place:
    """A store of our own, the road to it that drivers and nodes take, two nodes, and an undisturbed catalogue."""

    store: SeaweedFS
    road: Proxy
    nodes: RayNodes
    source: str
    network: str
    undisturbed: pa.Table

    def classify(self, target: str) -> Driver:
        words = ["--input", self.source, "--checkpoint", self.network, "--output", target]
        words += ["--precision", "exact", "--unit-rows", str(UNIT_ROWS), "--threads", "1", "--json"]
        return Driver(["classify", *words, "--address", self.nodes.address], self.nodes.environment, target)

    def finish(self, target: str) -> dict[str, Any]:
        """The same command again, undisturbed: the run is complete and what it should be."""
        driver = self.classify(target)
        record = driver.end()
        assert record["exit_code"] == ExitCode.DONE, driver.log
        assert record["rows_scored"] == ROWS
        assert catalogue(target).equals(self.undisturbed)
        return record


@pytest.fixture(scope="module")
def place(checkpoint: str) -> Iterator[Place]:  # noqa: F811
    with contextlib.ExitStack() as stack:
        store = SeaweedFS()
        stack.callback(store.stop)
        store.start()
        road = Proxy(store.endpoint, share=0.0)
        stack.callback(road.stop)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in store.environment().items():
            patch.setenv(name, value)
        for clients in (storage._s3, storage._arrow):  # the bucket of an earlier store has the same name
            clients.cache_clear()
            stack.callback(clients.cache_clear)
        store.create_bucket("faults")
        for number, part in enumerate(split(cutouts_of(ROWS, labelled=False), UNIT_ROWS)):
            write_shard(f"{BUCKET}/in/{number:03d}.parquet", part)
        nodes = RayNodes({"AWS_ENDPOINT_URL": road.endpoint})
        stack.callback(nodes.stop)
        made = Place(store, road, nodes, f"{BUCKET}/in", checkpoint, pa.table({}))
        driver = made.classify(f"{BUCKET}/undisturbed")
        assert driver.end().get("rows_scored") == ROWS, driver.log
        made.undisturbed = catalogue(f"{BUCKET}/undisturbed")
        yield made


@pytest.fixture
def target(request: pytest.FixtureRequest) -> str:
    return f"{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"
