"""What a work unit asks of an object store, counted on the way to a SeaweedFS.

    python -m tests.benchmarks.bench_requests

A tile is read in blocks of rows. Of each kind of tile (plain; fpacked; fpacked with weight and mask in each file) two
are scored that differ in height alone, so the difference is what a block asks, and the rest what a unit asks anyway.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

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
from tests.benchmarks.survey_costs import binned_blocks
from tests.faults.proxy import Proxy
from tests.seaweed import SeaweedFS
from tests.sky.tile_files import noise, tan_wcs

ROWS, BANDS = 5_000, "grz"
WIDTH, HEIGHTS = 4_000, (1_000, 1_100)
"""One block of rows, and two."""
TITLES = {
    "plain": "plain, science alone",
    "fpack": "fpacked, science alone",
    "fpack_weight_mask": "fpacked, with weight and mask",
}


def write_tile(folder: Path, height: int, kind: str) -> None:
    """Three bands; fpack as DES does it (RICE, subtractive dither)."""
    shape = (height, WIDTH)
    header = tan_wcs(shape).to_header()
    folder.mkdir(parents=True)
    planes: dict[str, NDArray[np.generic]] = {"SCI": noise(shape, 1)}
    if kind == "fpack_weight_mask":
        planes |= {"WGT": noise(shape, 2) + 100, "MSK": np.zeros(shape, np.int32)}
    for band in BANDS:
        header.update({"BAND": band, "MAGZERO": 30.0})
        hdus = [fits.PrimaryHDU(), *(fpacked(plane, header, name) for name, plane in planes.items())]
        if kind == "plain":
            hdus[1:] = [fits.ImageHDU(planes["SCI"], header, name="SCI")]
        fits.HDUList(hdus).writeto(folder / f"T_{band}.fits{'' if kind == 'plain' else '.fz'}")


def fpacked(plane: NDArray[np.generic], header: fits.Header, name: str) -> fits.CompImageHDU:
    return fits.CompImageHDU(plane, header, name=name, compression_type="RICE_1", quantize_level=4, quantize_method=1)


def shard_settings(bucket: str, checkpoint: str) -> Classify:
    images = np.random.default_rng(1).integers(0, 256, (ROWS, 64, 64, 3), np.uint8)
    write_shard(f"{bucket}/shards/0.parquet", shard(0, images))
    return Classify(input=f"{bucket}/shards", output=f"{bucket}/run-shard", checkpoint=checkpoint)


def tile_settings(folder: Path, place: str, height: int, kind: str, checkpoint: str) -> Classify:
    """A tile and its detections in the bucket, and the settings that classify them."""
    write_tile(folder, height, kind)
    for path in folder.iterdir():
        storage.write(f"{place}/tiles/{path.name}", path.read_bytes())
    rng = np.random.default_rng(1)
    ra, dec = tan_wcs((height, WIDTH)).all_pix2world(rng.uniform(50, WIDTH - 50, ROWS), rng.uniform(50, 950, ROWS), 0)
    ids = rng.integers(0, 2**62, ROWS)
    storage.write_table(f"{place}/d.parquet", pa.table({"object_id": ids, "ra": ra, "dec": dec}))
    return Classify(
        input=f"{place}/tiles", detections=f"{place}/d.parquet", output=f"{place}/run", checkpoint=checkpoint
    )


def unit_requests(settings: Classify, count: Callable[[], int]) -> tuple[int, float]:
    """Requests of the only unit, from its first read to its commit, and bytes a row of its score object."""
    (unit,) = plan(settings, settings.output).units
    scorer = UnitScorer(settings, settings.output, "run", "fingerprint", 1, "cpu")
    before = count()
    receipt = scorer(asdict(unit))
    assert (receipt["rows"], receipt["failure"]) == (ROWS, "")
    return count() - before, receipt["size_bytes"] / ROWS


def tile_figures(folder: Path, bucket: str, kind: str, checkpoint: str, count: Callable[[], int]) -> dict[str, float]:
    """Requests of a file's headers, of a block and band, and of a unit whatever its blocks; bytes a score takes."""
    asked, headers, row_bytes = [], 0.0, 0.0
    for height in HEIGHTS:
        place = f"{bucket}/{kind}-{height}"
        settings = tile_settings(folder / f"{kind}-{height}", place, height, kind, checkpoint)
        before = count()
        scan_tiles(settings.input)
        headers = (count() - before - 1) / len(BANDS)  # one lists
        requests, row_bytes = unit_requests(settings, count)
        asked.append(requests)
    blocks = [binned_blocks(height, WIDTH) for height in HEIGHTS]
    assert blocks == [1, 2]
    a_block = asked[1] - asked[0]
    return {
        f"{kind}_header_requests_per_file": round(headers, 2),
        f"{kind}_requests_per_block_and_band": round(a_block / len(BANDS), 2),
        f"{kind}_requests_per_unit": asked[0] - a_block,
        "score_bytes_per_row": round(row_bytes, 1),
    }


def main() -> None:
    server = SeaweedFS()
    server.start()
    os.environ.update(server.environment())
    bucket = server.create_bucket("requests")
    road = Proxy(server.endpoint)
    os.environ["AWS_ENDPOINT_URL"] = road.endpoint
    storage._s3.cache_clear()
    figures: dict[str, float] = {"tile_unit_bands": len(BANDS)}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint = str(folder / "checkpoint")
            save(checkpoint, DeepShadowsNet(seed=3), Card(name="untrained"))
            figures["shard_unit_requests"] = unit_requests(shard_settings(bucket, checkpoint), road.counts.total)[0]
            for kind in TITLES:
                figures |= tile_figures(folder, bucket, kind, checkpoint, road.counts.total)
    finally:
        road.stop()
        server.stop()
    print(figures)
    lines = [
        f"`python -m tests.benchmarks.bench_requests`; {machine()}.",
        "",
        f"A unit of a shard asks {figures['shard_unit_requests']} times, from its first read to its commit. A score "
        f"object has {figures['score_bytes_per_row']} bytes a row. A tile of {len(BANDS)} bands:",
        "",
        "| files | requests: headers, a file | a unit, without pixels | a block of rows, a band |",
        "|---|---|---|---|",
    ]
    for kind, title in TITLES.items():
        names = ("header_requests_per_file", "requests_per_unit", "requests_per_block_and_band")
        lines.append(f"| {title} | " + " | ".join(str(figures[f"{kind}_{name}"]) for name in names) + " |")
    write_section("Requests of a work unit", lines)
    write_figures("requests", {**figures, "machine": machine()})


if __name__ == "__main__":
    main()
