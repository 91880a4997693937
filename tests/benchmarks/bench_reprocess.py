"""What `reprocess` costs beside a full run: bytes and requests by the S3 server's own statistics, and seconds.

    python -m tests.benchmarks.bench_reprocess [--shards 2000] [--rows 20] [--listed 100000]

A survey of cut-out shards in SeaweedFS is brought into a catalogue: all of it, then a change of 1 % (half of these
shards new, a quarter changed, a quarter gone), then one shard, then nothing. The catalogue after the change is
compared, bit for bit, with that of a full run. Ray is started beforehand. Asserts that the change costs at most 3 % of
the bytes and requests of the full run; the seconds of a change of one shard are what any change costs, however large
the survey. Prints one JSON object and rewrites its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.outcomes import Summary
from deepshadows.run.record import software_versions
from deepshadows.settings import Reprocess
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs import reprocess
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.reprocess_input import look_at
from tests.benchmarks.results import write_section
from tests.seaweed import SeaweedFS

MOST_SHARE = 0.03
CHECKPOINT = "deepshadows-v2"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one call."""

    seconds: float
    requests: float
    bytes_moved: float
    figures: dict[str, Any]


def shard(number: int, shards: int, rows: int, look: int = 0) -> Cutouts:
    """A patch of sky of its own beside its neighbours; noise for images."""
    rng = np.random.default_rng([number, look])
    side = int(np.ceil(np.sqrt(shards)))
    return Cutouts(
        object_id=pa.array(range(number * rows, (number + 1) * rows), pa.int64()),
        ra=20 + 0.3 * (number // side) + rng.uniform(0, 0.3, rows),
        dec=-40 + 0.3 * (number % side) + rng.uniform(0, 0.3, rows),
        images=rng.integers(20, 80, (rows, 64, 64, 3), dtype=np.uint8),
        flags=np.zeros(rows, np.int32),
        fov_arcsec=33.5,
        stretch="des-1",
    )


class Survey:
    """The shards in the store, and the calls that are measured."""

    def __init__(self, server: SeaweedFS, place: str, shards: int, rows: int) -> None:
        self._server, self.place, self._shards, self._rows = server, place, shards, rows

    def put(self, numbers: range, look: int = 0) -> None:
        def one(number: int) -> None:
            made = shard(number, self._shards, self._rows, look)
            write_shard(f"{self.place}/in/{number:06d}.parquet", made)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, numbers))

    def remove(self, numbers: range) -> None:
        for number in numbers:
            storage.delete(f"{self.place}/in/{number:06d}.parquet")

    def settings(self, catalog: str) -> Reprocess:
        return Reprocess(
            input=f"{self.place}/in",
            catalog=f"{self.place}/{catalog}",
            checkpoint=CHECKPOINT,
            partition_rows=max(100, self._shards * self._rows // 20),
        )

    def reprocess(self, catalog: str = "cat") -> Cost:
        return self.measured(lambda: reprocess.run(self.settings(catalog)))

    def measured(self, call: Callable[[], Summary]) -> Cost:
        before, started = self._server.counted(), time.monotonic()
        summary = call()
        seconds, now = time.monotonic() - started, self._server.counted()
        spent = {name: now[name] - before[name] for name in now}
        moved = spent["sent"] + spent["received"]
        return Cost(seconds=seconds, requests=spent["requests"], bytes_moved=moved, figures=dict(summary.figures))

    def content(self, catalog: str) -> pa.Table:
        names = ["object_id", "ra", "dec", "logit", "p_lsbg", "p_lsbg_err", "flags"]
        return collection.read_current(f"{self.place}/{catalog}", names).sort_by("object_id")


def measure(survey: Survey, shards: int) -> dict[str, Cost]:
    """Full, 1 % changed, one shard changed, nothing changed, and full again to compare with."""
    survey.put(range(shards))
    costs = {"full run": survey.reprocess()}
    part = shards // 400
    survey.put(range(shards, shards + 2 * part))
    survey.put(range(part), look=1)
    survey.remove(range(part, 2 * part))
    costs["1 % changed"] = survey.reprocess()
    assert costs["1 % changed"].figures["units_scored_here"] == 3 * part
    full = survey.reprocess("again")
    assert full.figures["units_scored_here"] == shards + part
    assert survey.content("cat").equals(survey.content("again")), (
        "the catalogue after the change is not that of a full run"
    )
    survey.put(range(1), look=2)
    costs["one shard changed"] = survey.reprocess()
    costs["nothing changed"] = survey.reprocess()
    assert costs["nothing changed"].figures["changed"] is False
    return costs


def look_seconds(listed: int) -> float:
    """What a call that finds nothing changed does with each input object: `listed` of them on local disk."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(listed):
            part = Path(folder) / f"{number // 1000:04d}"
            part.mkdir(exist_ok=True)
            (part / f"{number:06d}.parquet").touch()
        started = time.monotonic()
        look_at(Reprocess(input=folder, catalog="/nowhere"), "recipe")
        return time.monotonic() - started


def table(costs: dict[str, Cost]) -> list[str]:
    full = costs["full run"]
    lines = ["| | rows scored | bytes | share | requests | share | s | share |", "|---|---|---|---|---|---|---|---|"]
    for name, cost in costs.items():
        values = [(cost.bytes_moved / 1e6, cost.bytes_moved / full.bytes_moved, "{:.1f} MB")]
        values += [
            (cost.requests, cost.requests / full.requests, "{:.0f}"),
            (cost.seconds, cost.seconds / full.seconds, "{:.1f}"),
        ]
        told = " | ".join(f"{form.format(value)} | {100 * share:.1f} %" for value, share, form in values)
        lines.append(f"| {name} | {cost.figures['rows_scored_here']} | {told} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=20, help="of one shard")
    parser.add_argument("--listed", type=int, default=100_000, help="input objects of the listing that is timed")
    asked = parser.parse_args()
    server = SeaweedFS()
    server.count()
    server.start()
    os.environ.update(server.environment())
    try:
        with ray_session(None):
            survey = Survey(server, server.create_bucket("bench"), asked.shards, asked.rows)
            costs = measure(survey, asked.shards)
    finally:
        server.stop()
    listing_s = look_seconds(asked.listed)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {software_versions()}"
    lines = [
        f"`python -m tests.benchmarks.bench_reprocess --shards {asked.shards} --rows {asked.rows}`: "
        f"{asked.shards} shards of {asked.rows} cut-outs in SeaweedFS on the same cores, Ray started beforehand. Bytes "
        "and requests are those of the server's own statistics; the seconds of one shard are what any change costs.",
        "",
        *table(costs),
        "",
        f"Nothing changed: the input is listed and hashed, {listing_s:.1f} s for {asked.listed} objects on disk.",
        "",
        machine,
    ]
    write_section("Reprocess", lines)
    shares = {
        name: {"bytes": cost.bytes_moved, "requests": cost.requests, "seconds": round(cost.seconds, 2)}
        for name, cost in costs.items()
    }
    print(json.dumps({"costs": shares, "listing_s": round(listing_s, 2), "listed": asked.listed, "machine": machine}))
    full, part = costs["full run"], costs["1 % changed"]
    assert part.bytes_moved <= MOST_SHARE * full.bytes_moved, "bytes"
    assert part.requests <= MOST_SHARE * full.requests, "requests"


if __name__ == "__main__":
    main()
