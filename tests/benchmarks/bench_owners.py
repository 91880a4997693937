"""A hundred thousand tiles: headers by ranges, owners of detections, their units, in bounded memory.

    python -m tests.benchmarks.bench_owners --folder SCRATCH

Headers are read from 1,500 real FITS files (three bands of 500 tiles, science, weight and mask HDUs), on disk and from
a SeaweedFS on the same cores; a hundred thousand tiles have an index made up without files, in rings of equal
declination around the whole sky, 10,000 pixels a side. Detections are spread evenly over the sphere; those that are
planned leave out its poles, so that each lies on a tile.
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
from deepshadows.run.units import TILE_UNIT_ROWS
from deepshadows.settings import Classify
from deepshadows.sky.tile_index import TileIndex, scan_tiles
from deepshadows.sky.tiles import BandSource, TileFiles
from deepshadows.verbs.plan_detections import group_by_tile, own_detections, tile_units
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.counted_reads import counted_reads
from tests.benchmarks.results import write_figures, write_section
from tests.benchmarks.steps import Found, step_or_whole
from tests.seaweed import SeaweedFS
from tests.sky.tile_files import noise, tan_wcs, write_band

SCANNED_TILES, SCANNED_PIX = 500, 400
TILE_PIX, SCALE_DEG, STEP_DEG = 10_000, 0.263 / 3600, 0.64
MOST_DEC_DEG = 85.0
"""Nearer to the poles the rings leave gaps between tiles."""
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


def scanned(url: str) -> Mapping[str, Any]:
    files = 3 * SCANNED_TILES
    began = time.perf_counter()
    with counted_reads() as reads:
        index = scan_tiles(url)
    seconds = time.perf_counter() - began
    assert (len(index.tiles), index.problems) == (SCANNED_TILES, ())
    return {
        "seconds": round(seconds, 2),
        "files_per_s": round(files / seconds),
        "requests_per_file": round(reads.requests / files, 2),
        "bytes_per_file": round(reads.bytes / files),
        "machine": machine(),
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


def sky(count: int, seed: int, most_dec_deg: float = 90.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    highest = np.sin(np.radians(most_dec_deg))
    return rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-highest, highest, count)))


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
        "machine": machine(),
    }


def planned(folder: Path, rows: int) -> Mapping[str, Any]:
    """Detections in Parquet to units in RUN/detections; every one lies on a tile."""
    ra, dec = sky(rows, 2, MOST_DEC_DEG)
    path = folder / f"detections-{rows}.parquet"
    pq.write_table(pa.table({"object_id": np.arange(rows), "ra": ra, "dec": dec}), path)
    del ra, dec
    index = made_up_index()
    index.footprints  # noqa: B018
    settings = Classify(input="unused", detections=str(path), output=str(folder / f"run-{rows}"))
    scratch = folder / f"scratch-{rows}"
    for used in (scratch, folder / f"run-{rows}"):
        shutil.rmtree(used, ignore_errors=True)
    scratch.mkdir()
    began, cpu = time.perf_counter(), time.process_time()
    groups = group_by_tile(settings, index, scratch)
    scratch_bytes = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    units = tile_units(groups, index, Card(name="none"), TILE_UNIT_ROWS)
    draft = Draft(own_detections(units, settings.output, TILE_UNIT_ROWS, keep=True))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    assert draft.rows == rows
    off_tile = sum(count for number, _, count in groups.groups() if number < 0)
    assert off_tile == 0, f"{off_tile} detections lie on no tile"
    return {
        "seconds": round(seconds, 1),
        "units": len(draft),
        "detections_per_s": round(rows / seconds),
        "detections_per_cpu_s": round(rows / cpu_s),
        "scratch_bytes_per_row": round(scratch_bytes / rows, 1),
        "machine": machine(),
    }


PREPARATION = {"make_tiles": make_tiles}
MEASURED = {
    "scan_disk": scan_disk,
    "scan_s3": scan_s3,
    "owners": owners,
    **{f"plan_{rows}": lambda folder, rows=rows: planned(folder, rows) for rows in PLANNED},
}


def by_machine(found: Found) -> dict[str, list[str]]:
    """The steps that each machine did."""
    steps: dict[str, list[str]] = {}
    for step, values in found.items():
        steps.setdefault(values["machine"], []).append(step)
    return steps


def report(found: Found) -> None:
    lines = [
        "`python -m tests.benchmarks.bench_owners`. Steps may be of different machines:",
        "",
        *(f"* {', '.join(steps)}: {where}" for where, steps in by_machine(found).items()),
        "",
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
        lines += ["", "The same tiles, all detections on them; the index is at hand.", ""]
        lines.append(
            "| detections planned | detections/s | a CPU-second | load | units | peak memory, GiB | disk, B each |"
        )
        lines.append("|---" * 7 + "|")
    for rows, at in planned_ones.items():
        names = ("detections_per_s", "detections_per_cpu_s", "load", "units", "peak_gib", "scratch_bytes_per_row")
        lines.append(f"| {rows:,} | " + " | ".join(f"{at[name]:,}" for name in names) + " |")
    write_section("Tile index and owners of detections", lines)
    figures = {f"{step}_{name}": value for step, values in found.items() for name, value in values.items()}
    write_figures("owners", {**figures, "machine": " and ".join(by_machine(found))})


if __name__ == "__main__":
    step_or_whole("tests.benchmarks.bench_owners", PREPARATION, MEASURED, report)
