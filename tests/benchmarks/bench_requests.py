"""What a work unit asks of an object store, counted on the way to a SeaweedFS.

python -m tests.benchmarks.bench_requests
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from deepshadows import storage
from deepshadows.model.card import Card
from deepshadows.model.checkpoint import save
from deepshadows.model.network import DeepShadowsNet
from deepshadows.settings import Classify
from deepshadows.sky.shards import write_shard
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.verbs.classify_plan import plan
from deepshadows.verbs.unit_scoring import UnitScorer
from tests.benchmarks.bench_classify import machine, shard
from tests.benchmarks.results import write_figures, write_section
from tests.faults.proxy import Proxy
from tests.seaweed import SeaweedFS
from tests.sky.tile_files import write_tile

ROWS, BANDS = 5_000, "grz"


def inputs(folder: Path, bucket: str) -> dict[str, Classify]:
    """A shard, and a tile of three bands with its detections; the settings that classify them."""
    checkpoint = str(folder / "checkpoint")
    save(checkpoint, DeepShadowsNet(seed=3), Card(name="untrained"))
    rng = np.random.default_rng(1)
    write_shard(f"{bucket}/shards/0.parquet", shard(0, rng.integers(0, 256, (ROWS, 64, 64, 3), np.uint8)))
    wcs = write_tile(folder / "tiles", shape=(1000, 1000), bands=BANDS)
    for path in (folder / "tiles").iterdir():
        storage.write(f"{bucket}/tiles/{path.name}", path.read_bytes())
    ra, dec = wcs.all_pix2world(rng.uniform(50, 950, ROWS), rng.uniform(50, 950, ROWS), 0)
    storage.write_table(
        f"{bucket}/d.parquet", pa.table({"object_id": rng.integers(0, 2**62, ROWS), "ra": ra, "dec": dec})
    )
    tiles = {"input": f"{bucket}/tiles", "detections": f"{bucket}/d.parquet"}
    return {
        "shard": Classify(input=f"{bucket}/shards", output=f"{bucket}/run-shard", checkpoint=checkpoint),
        "tile": Classify(**tiles, output=f"{bucket}/run-tile", checkpoint=checkpoint),
    }


def unit_requests(settings: Classify, count: Callable[[], int]) -> tuple[int, float]:
    """Requests of the only unit, from its first read to its commit, and bytes a row of its score object."""
    (unit,) = plan(settings, settings.output).units
    scorer = UnitScorer(settings, settings.output, "run", "fingerprint", 1, "cpu")
    before = count()
    receipt = scorer(asdict(unit))
    assert (receipt["rows"], receipt["failure"]) == (ROWS, "")
    return count() - before, receipt["size_bytes"] / ROWS


def main() -> None:
    server = SeaweedFS()
    server.start()
    os.environ.update(server.environment())
    bucket = server.create_bucket("requests")
    road = Proxy(server.endpoint)
    os.environ["AWS_ENDPOINT_URL"] = road.endpoint
    storage._s3.cache_clear()
    try:
        with tempfile.TemporaryDirectory() as folder:
            wanted = inputs(Path(folder), bucket)
            before = road.counts.total()
            scan_tiles(f"{bucket}/tiles")
            header = (road.counts.total() - before - 1) / len(BANDS)  # one lists
            found = {kind: unit_requests(settings, road.counts.total) for kind, settings in wanted.items()}
    finally:
        road.stop()
        server.stop()
    figures = {
        "header_requests_per_file": round(header, 2),
        "shard_unit_requests": found["shard"][0],
        "tile_unit_requests": found["tile"][0],
        "tile_unit_bands": len(BANDS),
        "score_bytes_per_row": round(found["tile"][1], 1),
    }
    print(figures)
    lines = [
        f"`python -m tests.benchmarks.bench_requests`; {machine()}.",
        "",
        "| what | requests |",
        "|---|---|",
        f"| headers of one FITS file, science alone | {figures['header_requests_per_file']} |",
        f"| a unit of a shard, from its first read to its commit | {figures['shard_unit_requests']} |",
        f"| a unit of a tile of three bands | {figures['tile_unit_requests']} |",
        "",
        f"A score object has {figures['score_bytes_per_row']} bytes a row.",
    ]
    write_section("Requests of a work unit", lines)
    write_figures("requests", {**figures, "machine": machine()})


if __name__ == "__main__":
    main()
