"""A hundred thousand tiles: headers by ranges, owners of detections, their units, in bounded memory.

    python -m tests.benchmarks.bench_owners --folder SCRATCH

Headers are read from 1,500 real FITS files (three bands of 500 tiles, science, weight and mask HDUs), on disk and from
a SeaweedFS on the same cores; a hundred thousand tiles have an index made up without files, in rings of equal
declination around the whole sky, 10,000 pixels a side. Detections are spread evenly over the sphere.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from deepshadows import storage
from deepshadows.model.card import Card
from deepshadows.run.plan import Draft
from deepshadows.settings import Classify
from deepshadows.sky.tile_index import TileIndex, scan_tiles
from deepshadows.sky.tiles import BandSource, TileFiles
from deepshadows.verbs.plan_detections import group_by_tile, own_detections, tile_units
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.results import write_figures, write_section
from tests.benchmarks.steps import Found, step_or_whole
from tests.seaweed import SeaweedFS
from tests.sky.tile_files import noise, tan_wcs, write_band

SCANNED_TILES, SCANNED_PIX = 500, 400
TILE_PIX, SCALE_DEG, STEP_DEG = 10_000, 0.263 / 3600, 0.64
OWNED, PLANNED = 10_000_000, (1_000_000, 10_000_000)


def make_tiles(folder: Path) -> Mapping[str, Any]:
    """FITS files of 1.9 MB: pixels enough that reading them would show."""
    shape = (SCANNED_PIX, SCANNED_PIX)
    pixels, ones = noise(shape, 1), np.ones(shape, np.float32)
    for number in range(SCANNED_TILES):
        for band in "grz":
            path = folder / "tiles" / f"T{number:04d}_{band}.fits"
            wcs = tan_wcs(shape, ra=number * 0.5, dec=-30.0)
            write_band(path, pixels, wcs=wcs, band=band, weight=ones, mask=np.zeros(shape, np.int32))
    size = (folder / "tiles" / "T0000_g.fits").stat().st_size
    return {"files": 3 * SCANNED_TILES, "file_bytes": size}


class Counted:
    """Counts requests and bytes of range reads."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        self._real = storage.read_ranges
        storage.read_ranges = self._read  # type: ignore[assignment]

    def _read(self, url: str, starts: list[int], ends: list[int]) -> list[bytes]:
        self.requests += 1
        self.bytes += sum(ends) - sum(starts)
        return self._real(url, starts, ends)


def scanned(url: str) -> Mapping[str, Any]:
    counted, files = Counted(), 3 * SCANNED_TILES
    began = time.perf_counter()
    index = scan_tiles(url)
    seconds = time.perf_counter() - began
    assert (len(index.tiles), index.problems) == (SCANNED_TILES, ())
    return {
        "seconds": round(seconds, 2),
        "files_per_s": round(files / seconds),
        "requests_per_file": round(counted.requests / files, 2),
        "bytes_per_file": round(counted.bytes / files),
    }


def scan_disk(folder: Path) -> Mapping[str, Any]:
    return scanned(str(folder / "tiles"))


def scan_s3(folder: Path) -> Mapping[str, Any]:
    server = SeaweedFS()
    server.start()
    os.environ.update(server.environment())
    try:
        bucket = server.create_bucket("tiles")
        for path in (folder / "tiles").iterdir():
            storage.write(f"{bucket}/{path.name}", path.read_bytes())
        return scanned(bucket)
    finally:
        server.stop()


def made_up_index(step_deg: float = STEP_DEG) -> TileIndex:
    """Tiles in rings of equal declination that overlap by a tenth, three bands each."""
    tiles = []
    for dec in np.arange(-90 + step_deg / 2, 90, step_deg):
        around = max(1, int(np.ceil(360 * np.cos(np.radians(dec)) / step_deg)))
        for ra in np.arange(around) * 360 / around:
            header = fits.Header([("NAXIS", 2), ("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN")])
            header.extend([("CRVAL1", float(ra)), ("CRVAL2", float(dec)), ("CRPIX1", 5000.5), ("CRPIX2", 5000.5)])
            header.extend([("CD1_1", -SCALE_DEG), ("CD1_2", 0.0), ("CD2_1", 0.0), ("CD2_2", SCALE_DEG)])
            text = str(header.tostring(endcard=False, padding=False))
            name = f"DES{ra:08.4f}{dec:+08.4f}"
            bands = {
                band: BandSource(
                    url=f"s3://survey/tiles/{name}_{band}.fits.fz",
                    etag=f'"{len(tiles):032x}"',
                    size_bytes=10**8,
                    science_hdu=1,
                    shape=(TILE_PIX, TILE_PIX),
                    zero_point=30.0,
                    wcs_header=text,
                )
                for band in "grz"
            }
            tiles.append(TileFiles(name, bands))
    return TileIndex(tuple(tiles))


def sky(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


def owners(folder: Path) -> Mapping[str, Any]:
    index = made_up_index()
    began = time.perf_counter()
    index.footprints  # noqa: B018 -- made when it is asked for
    prepared = time.perf_counter() - began
    ra, dec = sky(OWNED, 1)
    began = time.perf_counter()
    owner, _ = index.owners(ra, dec)
    seconds = time.perf_counter() - began
    return {
        "tiles": len(index.tiles),
        "footprints_s": round(prepared, 1),
        "seconds": round(seconds, 1),
        "detections_per_s": round(OWNED / seconds),
        "share_owned": round(float((owner >= 0).mean()), 4),
    }


def planned(folder: Path, rows: int) -> Mapping[str, Any]:
    """Detections in Parquet to units in RUN/detections; the index is that of a quarter of the tiles."""
    ra, dec = sky(rows, 2)
    path = folder / f"detections-{rows}.parquet"
    pq.write_table(pa.table({"object_id": np.arange(rows), "ra": ra, "dec": dec}), path)
    del ra, dec
    index = made_up_index(2 * STEP_DEG)
    index.footprints  # noqa: B018
    settings = Classify(input="unused", detections=str(path), output=str(folder / f"run-{rows}"))
    scratch = folder / f"scratch-{rows}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    began = time.perf_counter()
    groups = group_by_tile(settings, index, scratch)
    units = tile_units(groups, index, Card(name="none"), 20_000)
    draft = Draft(own_detections(units, settings.output, 20_000, keep=True))
    seconds = time.perf_counter() - began
    assert draft.rows == rows
    return {"seconds": round(seconds, 1), "units": len(draft), "detections_per_s": round(rows / seconds)}


PREPARATION = {"make_tiles": make_tiles}
MEASURED = {
    "scan_disk": scan_disk,
    "scan_s3": scan_s3,
    "owners": owners,
    **{f"plan_{rows}": lambda folder, rows=rows: planned(folder, rows) for rows in PLANNED},
}


def report(found: Found) -> None:
    lines = [
        f"`python -m tests.benchmarks.bench_owners`; {machine()}.",
        f"CPU time is that of the whole process, its start included. Headers of {3 * SCANNED_TILES:,} FITS files of "
        "1.9 MB:",
        "",
        "| store | files/s | CPU-seconds | load of the machine | requests a file | bytes a file |",
        "|---|---|---|---|---|---|",
    ]
    for store, step in (("disk", "scan_disk"), ("SeaweedFS", "scan_s3")):
        if step in found:
            names = ("files_per_s", "cpu_s", "load", "requests_per_file", "bytes_per_file")
            lines.append(f"| {store} | " + " | ".join(str(found[step][name]) for name in names) + " |")
    if "owners" in found:
        line = (
            "{tiles:,} tiles in an index without files: prepared in {footprints_s} s, then owners of "
            "{detections_per_s:,} detections/s; {cpu_s} CPU-seconds, load {load}, peak {peak_gib} GiB."
        )
        lines += ["", line.format(**found["owners"])]
    planned_ones = {rows: found[name] for rows in PLANNED if (name := f"plan_{rows}") in found}
    if planned_ones:
        lines += ["", "| detections planned | detections/s | CPU-seconds | load | units | peak memory, GiB |"]
        lines.append("|---" * 6 + "|")
    for rows, at in planned_ones.items():
        names = ("detections_per_s", "cpu_s", "load", "units", "peak_gib")
        lines.append(f"| {rows:,} | " + " | ".join(f"{at[name]:,}" for name in names) + " |")
    write_section("Tile index and owners of detections", lines)
    figures = {f"{step}_{name}": value for step, values in found.items() for name, value in values.items()}
    write_figures("owners", {**figures, "machine": machine()})


if __name__ == "__main__":
    step_or_whole("tests.benchmarks.bench_owners", PREPARATION, MEASURED, report)
