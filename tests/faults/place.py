"""A store, the road to it, a Ray of several nodes, and drivers to disturb: what the fault tests are made of."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.outcomes import ExitCode, StorageError
from deepshadows.run.ledger import planned_ledger
from deepshadows.run.manifest import read_manifest, score_objects
from deepshadows.run.record import read_record
from deepshadows.sky.shards import split, write_shard
from tests.faults.proxy import Proxy
from tests.faults.ray_nodes import RayNodes
from tests.seaweed import SeaweedFS
from tests.sky.test_shards import cutouts_of

UNIT_ROWS, UNITS = 100, 20
ROWS = UNIT_ROWS * UNITS
NODES = 2
LIMIT_S = 300.0
"""Longest time that anything may take here: a driver that hangs fails its test."""
POLL_S = 0.02


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for something that can be seen."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not after {limit_s:.0f} s: {what}"
        time.sleep(POLL_S)


class Driver:
    """`deepshadows ...` in a process of its own."""

    def __init__(self, words: list[str], environment: dict[str, str], before: tuple[str, ...] = ()) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- lives as long as the driver
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "deepshadows", *words, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    @property
    def log(self) -> str:
        """What it has said on stderr so far."""
        self._log.seek(0)
        return self._log.read()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that it does; that it ends before is a failure."""

        def happened() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, f"ended before {what}: {self.log[-3000:]}"
            return False

        wait_until(happened, what)

    def end(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The last line of its output; within bounded time, and with the exit code that the line says."""
        try:
            out, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(f"it hangs: {self.log[-3000:]}") from error
        assert out, f"exit code {self.process.returncode} without a word: {self.log[-3000:]}"
        record: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert self.process.returncode == record["exit_code"], self.log
        assert "Traceback" not in self.log, self.log
        return record

    def kill(self) -> None:
        """SIGKILL; the process is gone when this returns."""
        self.process.kill()
        self.process.wait()


def count_scores(target: str) -> int:
    """Units that are committed; none where the store does not answer, being what is disturbed."""
    try:
        return len(storage.list_objects(storage.join(target, "scores"), (".parquet",)))
    except StorageError:
        return 0


def catalogue(target: str) -> pa.Table:
    """What readers of a finished run see, sorted; each planned row once, and the books in order."""
    manifest, record = read_manifest(target), read_record(target)
    assert record is not None
    planned = planned_ledger(target, record)
    assert planned.rows.sum() == manifest.rows_planned == ROWS
    scores = [score for part in score_objects(target, manifest) for score in part]
    units = sorted(storage.name_of(score.url).removesuffix(".parquet") for score in scores)
    assert units == [unit.decode() for unit in planned.ids]
    table = pa.concat_tables(pq.read_table(storage.open_arrow(storage.join(target, score.url))) for score in scores)
    assert len(set(table["object_id"].to_pylist())) == table.num_rows == manifest.rows_planned
    return table.sort_by("object_id").drop_columns(["run", "unit"])


@dataclass
class Place:
    """A store, the road to it that drivers and nodes take, two nodes, and the catalogue of an undisturbed run."""

    store: SeaweedFS
    road: Proxy
    nodes: RayNodes
    folder: str
    undisturbed: pa.Table
    requests: int = 0
    """How many requests to the store that undisturbed run made."""

    @property
    def source(self) -> str:
        return f"{self.folder}/in"

    def words(self, target: str) -> list[str]:
        """The command line of `classify`."""
        words = ["classify", "--input", self.source, "--checkpoint", f"{self.folder}/network", "--output", target]
        return [*words, "--precision", "exact", "--unit-rows", str(UNIT_ROWS), "--threads", "1"]

    def classify(self, target: str, *flags: str, **environment: str) -> Driver:
        words = [*self.words(target), *flags, "--address", self.nodes.address]
        return Driver(words, {**self.nodes.environment, **environment})

    def restore(self) -> None:
        """Two nodes, as there were at the beginning."""
        while self.nodes.count < NODES:
            self.nodes.ask("add")

    def check(self, target: str, record: dict[str, Any], log: str = "") -> None:
        """The run is complete and its catalogue that of the undisturbed one."""
        assert record["exit_code"] == ExitCode.DONE, log
        assert (record["rows_scored"], record["units_quarantined"]) == (ROWS, 0)
        assert catalogue(target).equals(self.undisturbed)

    def finish(self, target: str) -> dict[str, Any]:
        """The same command again, undisturbed, makes the run complete and what it should be."""
        self.road.be_good()
        driver = self.classify(target)
        record = driver.end()
        self.check(target, record, driver.log)
        return record


@contextlib.contextmanager
def place_on(store: SeaweedFS, folder: str, network: str) -> Iterator[Place]:
    """Two nodes, and a network and a small survey below `folder`, classified once without any disturbance."""
    with contextlib.ExitStack() as stack:
        road = Proxy(store.endpoint)
        stack.callback(road.stop)
        for number, part in enumerate(split(cutouts_of(ROWS, labelled=False), UNIT_ROWS)):
            write_shard(f"{folder}/in/{number:03d}.parquet", part)
        for file in Path(network).iterdir():
            storage.write(f"{folder}/network/{file.name}", file.read_bytes())
        nodes = RayNodes({"AWS_ENDPOINT_URL": road.endpoint}, NODES)
        stack.callback(nodes.stop)
        made = Place(store, road, nodes, folder, pa.table({}))
        driver = made.classify(f"{folder}/undisturbed")
        assert driver.end().get("rows_scored") == ROWS, driver.log
        made.undisturbed = catalogue(f"{folder}/undisturbed")
        made.requests = road.counts.total()
        yield made
