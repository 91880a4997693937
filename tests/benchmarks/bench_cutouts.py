"""How fast cut-outs come from tiles, beside astropy's Cutout2D, a numpy loop and Cutana; by density; within `classify`.

    python -m tests.benchmarks.bench_cutouts [--cutana PYTHON] [--rounds 3] [--parts contenders rates bound ...]

PYTHON is an interpreter of an environment of its own that has Cutana. Prints the machine, versions and medians, asserts
that the pixels of the loops are ours within one level of 255 (Cutana's, at its own settings, are not compared), and
rewrites its section of RESULTS.md and its entry of figures.json beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from deepshadows import storage
from deepshadows.model.card import Card
from deepshadows.model.checkpoint import save
from deepshadows.model.network import DeepShadowsNet
from deepshadows.model.scorer import load_scorer
from deepshadows.run.manifest import read_manifest
from deepshadows.sky.cutouts import Geometry, cut, cut_parts
from deepshadows.sky.presets import PRESETS
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import Tile, TileFiles, open_tile
from tests.benchmarks.bench_classify import images_like_sky, machine, scorer_rate
from tests.benchmarks.counted_reads import counted_reads
from tests.benchmarks.results import write_figures, write_section
from tests.seaweed import SeaweedFS
from tests.sky.tile_files import tan_wcs

SIDE, POSITIONS, FIELD = 4000, 5000, 128
BANDS = "zrg"
GEOMETRY = Geometry(stretch=DES)
DENSITIES = (1, 10, 100, 1000, 20_000)
TOLERANCE = 1
"""Levels of 255 by which a pixel may differ from that of a loop: sums of four floats in another order."""
STEADY_S, MOST_CALLS = 2.0, 50
SLOW = ("astropy Cutout2D loop, pixels", "astropy Cutout2D loop, SkyCoord")
"""Measured once, as Cutana is: ten seconds and more."""
HERE = Path(__file__).parent
TITLES = {
    "contenders": f"Cut-outs: {POSITIONS:,} positions of a {SIDE} x {SIDE} g, r, z tile, from plain files on disk",
    "rates": f"Cut-outs: a {SIDE} x {SIDE} g, r, z tile by the number of its detections, one thread",
    "resampled": "Cut-outs: other pixel scales, resampled",
    "bound": f"Cut-outs: what bounds `classify` on {SIDE} x {SIDE} tiles of {POSITIONS:,} detections",
    "classify": f"Cut-outs: `classify` on {SIDE} x {SIDE} tiles of {POSITIONS:,} detections",
}


def write_tile(folder: Path, number: int, *, fpacked: bool) -> WCS:
    """Three bands of noise and blobs at the depth of DES; fpack as DES does it (RICE, subtractive dither)."""
    wcs = tan_wcs((SIDE, SIDE), ra=30.0 + 0.4 * number)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, band in enumerate(BANDS):
        rng = np.random.default_rng(seed)
        pixels = rng.normal(0, 3, (SIDE, SIDE)).astype(np.float32)
        header = wcs.to_header()
        header.update({"BAND": band, "MAGZERO": 30.0})
        path = folder / f"T{number:03d}_{band}.fits{'.fz' if fpacked else ''}"
        if fpacked:
            image = fits.CompImageHDU(pixels, header, compression_type="RICE_1", quantize_level=4, quantize_method=1)
            fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
        else:
            fits.PrimaryHDU(pixels, header).writeto(path)
    return wcs


def positions(wcs: WCS, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, ra, dec of fields that lie inside the tile."""
    x, y = np.random.default_rng(count).uniform(FIELD, SIDE - FIELD, (2, count))
    return x, y, *wcs.all_pix2world(x, y, 0)


def ours(files: TileFiles, ra: np.ndarray, dec: np.ndarray, threads: int = 1) -> np.ndarray:
    parts = cut_parts(open_tile(files, GEOMETRY.bands), ra, dec, GEOMETRY, rows=1024, threads=threads)
    return np.concatenate([part.images for part in parts])


def stretched(fields: np.ndarray) -> np.ndarray:
    """Bin and stretch one field (3, 128, 128) of counts, north up."""
    flux = fields * np.float32(1e-3)
    mean = (flux[:, ::2, ::2] + flux[:, ::2, 1::2] + flux[:, 1::2, ::2] + flux[:, 1::2, 1::2]) / np.float32(4)
    return DES.apply(np.moveaxis(mean, 0, -1), GEOMETRY.bands)[::-1]


def corner(x: np.ndarray) -> np.ndarray:
    """First pixel of each field on the grid of 2x2 bins."""
    return 2 * np.rint((x + 0.5) / 2 - FIELD / 4).astype(int)


def numpy_loop(folder: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tile = np.stack([fits.getdata(folder / f"T000_{band}.fits") for band in BANDS]).astype(np.float32)
    out = np.empty((len(x), FIELD // 2, FIELD // 2, 3), np.uint8)
    for number, (left, top) in enumerate(zip(corner(x), corner(y), strict=True)):
        out[number] = stretched(tile[:, top : top + FIELD, left : left + FIELD])
    return out


def cutout2d_loop(folder: Path, x: np.ndarray, y: np.ndarray, *, on_sky: bool) -> np.ndarray:
    """As astropy documents it: a Cutout2D with its WCS of each band, around a pixel or a place on the sky."""
    tiles, systems = [], []
    for band in BANDS:
        with fits.open(folder / f"T000_{band}.fits") as hdus:
            tiles.append(hdus[0].data.astype(np.float32))
            systems.append(WCS(hdus[0].header))
    out = np.empty((len(x), FIELD // 2, FIELD // 2, 3), np.uint8)
    middle_x, middle_y = corner(x) + (FIELD - 1) / 2, corner(y) + (FIELD - 1) / 2
    places = systems[0].pixel_to_world(middle_x, middle_y) if on_sky else list(zip(middle_x, middle_y, strict=True))
    for number in range(len(x)):
        place = places[number]
        cuts = [Cutout2D(tile, place, FIELD, wcs=wcs).data for tile, wcs in zip(tiles, systems, strict=True)]
        out[number] = stretched(np.stack(cuts))
    return out


def cutana(python: str, folder: Path, table: Path, output: Path) -> dict[str, Any]:
    words = [python, str(HERE / "cutana_contender.py"), str(folder), str(table), str(output)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and CPU seconds (all threads of this process) of a call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def contenders(root: Path, wanted: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """From files to uint8 stacks, each contender reading the same tile, in turn."""
    folder = root / "plain"
    wcs = write_tile(folder, 0, fpacked=False)
    x, y, ra, dec = positions(wcs, POSITIONS)
    (files,) = scan_tiles(str(folder)).tiles
    table = root / "positions.csv"
    table.write_text(
        "\n".join(
            [
                "id,ra,dec",
                *(f"s{n},{a!r},{d!r}" for n, (a, d) in enumerate(zip(ra.tolist(), dec.tolist(), strict=True))),
            ]
        )
    )
    works: dict[str, Callable[[], np.ndarray]] = {
        "DeepShadows": lambda: ours(files, ra, dec),
        "DeepShadows, 2 threads": lambda: ours(files, ra, dec, 2),
        "numpy slicing loop": lambda: numpy_loop(folder, x, y),
        "astropy Cutout2D loop, pixels": lambda: cutout2d_loop(folder, x, y, on_sky=False),
        "astropy Cutout2D loop, SkyCoord": lambda: cutout2d_loop(folder, x, y, on_sky=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    cpus: dict[str, list[float]] = {name: [] for name in works}
    reference = works["numpy slicing loop"]()
    for number in range(wanted.rounds):
        for name, work in works.items():
            if number and name in SLOW:
                continue
            wall, cpu, images = timed(work)
            seconds[name].append(wall)
            cpus[name].append(cpu)
            off = np.abs(images.astype(np.int16) - reference)
            assert off.max() <= TOLERANCE, f"{name}: a pixel is off by {off.max()} levels"
            assert (off > 0).mean() < 1e-3, f"{name}: {(off > 0).mean():.2%} of the pixels differ"
    note = ""
    if wanted.cutana:
        runs = [cutana(wanted.cutana, folder, table, root / "cutana")]
        good = [run for run in runs if run.get("images") == POSITIONS]
        if good:
            seconds[f"Cutana {good[0]['version']}"] = [run["seconds"] for run in good]
            cpus[f"Cutana {good[0]['version']}"] = [run["cpu_seconds"] for run in good]
        note = "" if good else f"Cutana did not run: {runs[0]}"
    rates = {name: POSITIONS / statistics.median(times) for name, times in seconds.items()}
    per_cpu = {name: POSITIONS / statistics.median(times) for name, times in cpus.items()}
    lines = [
        "| from files to uint8 | cut-outs/s | DeepShadows is faster by | cut-outs a CPU-second | and by |",
        "|---|---|---|---|---|",
    ]
    for name, rate in rates.items():
        times = [f"{rate:,.0f}", f"{rates['DeepShadows'] / rate:.1f}"]
        times += [f"{per_cpu[name]:,.0f}", f"{per_cpu['DeepShadows'] / per_cpu[name]:.1f}"]
        lines.append(f"| {name} | {' | '.join(times)} |")
        print(lines[-1], [round(second, 3) for second in seconds[name]], flush=True)
    figures = {
        "cutouts_per_s": {name: round(rate) for name, rate in rates.items()},
        "cutouts_per_cpu_s": {name: round(rate) for name, rate in per_cpu.items()},
    }
    return [*lines, *(["", note] if note else [])], figures


def rates(root: Path, bucket: str, wanted: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """One tile by the number of its detections, plain and fpack, disk and S3; CPU of this process alone."""
    lines = [
        "Medians of several calls; MB are those that were read, as stored.",
        "",
        "| tile | where | detections | s | detections/s | detections/s per core | MB read | MB/s per core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for fpacked in (False, True):
        kind = "fpack" if fpacked else "plain"
        folder = root / kind
        wcs = tan_wcs((SIDE, SIDE)) if folder.exists() else write_tile(folder, 0, fpacked=fpacked)
        for path in folder.iterdir():
            storage.write(storage.join(bucket, kind, path.name), path.read_bytes())
        for place, url in (("disk", str(folder)), ("S3", storage.join(bucket, kind))):
            (files,) = scan_tiles(url).tiles
            for count in DENSITIES:
                _, _, ra, dec = positions(wcs, count)
                wall, cpu, read_mb = steady(lambda ra=ra, dec=dec, files=files: ours(files, ra, dec), wanted.rounds)
                cells = [f"{value:,.0f}" for value in (count / wall, count / cpu)]
                cells += [f"{read_mb:,.1f}", f"{read_mb / cpu:,.0f}"]
                lines.append(f"| {kind} | {place} | {count:,} | {wall:.3f} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
                figures[f"{kind} {place} {count}"] = {
                    "seconds": round(wall, 4),
                    "cpu_seconds": round(cpu, 4),
                    "read_mb": round(read_mb, 2),
                }
    return lines, figures


def steady(work: Callable[[], np.ndarray], rounds: int) -> tuple[float, float, float]:
    """Median wall and CPU seconds of a call, and the MB that it reads.

    The first call is counted but not timed. Short calls are repeated until they have taken `STEADY_S` together.
    """
    with counted_reads() as reads:
        expected = work()
    runs: list[tuple[float, float]] = []
    while len(runs) < rounds or (sum(wall for wall, _ in runs) < STEADY_S and len(runs) < MOST_CALLS):
        wall, cpu, images = timed(work)
        assert (images == expected).all()
        runs.append((wall, cpu))
    wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
    return wall, cpu, reads.bytes / 1e6


def bound(root: Path, wanted: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """How busy a scorer can be that shares its cores with cutting: CPU-seconds of the one over those of both."""
    checkpoint = str(root / "checkpoint")
    save(checkpoint, DeepShadowsNet(seed=3), Card(name="untrained"))
    scorer = load_scorer(checkpoint, precision="fast", batch_size=256, threads=1)
    images = images_like_sky(POSITIONS)
    scorer.score(images[:1024])
    scoring = statistics.median(timed(lambda: scorer.score(images))[1] for _ in range(wanted.rounds))
    lines = [
        f"Scoring: {1000 * scoring / POSITIONS:.4f} CPU-ms an image, {scorer.engine}.",
        "",
        "| tiles | cutting again, CPU-ms each | CPU scorer busy, at most | cores beside a GPU of 100,000 images/s |",
        "|---|---|---|---|",
    ]
    figures: dict[str, Any] = {"scoring_cpu_ms": 1000 * scoring / POSITIONS}
    for fpacked in (False, True):
        kind = "fpack" if fpacked else "plain"
        folder = root / f"bound-{kind}"
        _, _, ra, dec = positions(write_tile(folder, 0, fpacked=fpacked), POSITIONS)
        (files,) = scan_tiles(str(folder)).tiles
        runs = [timed(lambda ra=ra, dec=dec, files=files: ours(files, ra, dec))[1] for _ in range(wanted.rounds + 1)]
        cutting = statistics.median(runs[1:])
        each_ms = 1000 * cutting / POSITIONS
        lines.append(f"| {kind} | {each_ms:.4f} | {scoring / (scoring + cutting):.2f} | {100 * each_ms:.1f} |")
        print(lines[-1], flush=True)
        figures[kind] = {"cutting_cpu_ms": round(each_ms, 4), "busy": round(scoring / (scoring + cutting), 3)}
    return lines, figures


def resampled(root: Path, wanted: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Cut-outs of other pixel scales, from a tile in memory: what an image costs beyond the opening of its tile."""
    lines = ["| survey | arcsec a pixel | CPU-ms an image |", "|---|---|---|"]
    figures: dict[str, Any] = {}
    for name in ("hsc", "rubin", "panstarrs", "sdss"):
        scale = PRESETS[name].pixel_scale_arcsec
        flux = np.random.default_rng(1).normal(0.01, 0.01, (3, 1500, 1500)).astype(np.float32)
        wcs = tan_wcs((1500, 1500), scale_arcsec=scale)
        valid = np.ones(flux.shape, bool)
        tile = Tile(
            tile_id="T",
            bands=GEOMETRY.bands,
            flux=flux,
            valid=valid,
            saturated=~valid,
            wcs=wcs,
            pixel_scale_arcsec=scale,
        )
        x, y = np.random.default_rng(2).uniform(200, 1300, (2, 500))
        ra, dec = wcs.all_pix2world(x, y, 0)
        runs = [timed(lambda ra=ra, dec=dec, tile=tile: cut(tile, ra, dec, GEOMETRY))[1] for _ in range(wanted.rounds)]
        each_ms = 1000 * statistics.median(runs) / len(x)
        lines.append(f"| {name} | {scale:g} | {each_ms:.2f} |")
        print(lines[-1], flush=True)
        figures[f"{name}_cpu_ms"] = round(each_ms, 4)
    return lines, figures


def classify(tiles: Path, detections: Path, checkpoint: str, target: Path) -> float:
    """Seconds from the start of scoring to the last commit, that of the actors included."""
    words = ["classify", "--input", str(tiles), "--detections", str(detections), "--checkpoint", checkpoint]
    words = [sys.executable, "-m", "deepshadows", *words, "--output", str(target), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = read_manifest(str(target))
    assert manifest.rows_scored == manifest.rows_planned > 0
    return manifest.seconds


def in_classify(root: Path, wanted: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """`classify` on tiles of 5,000 detections: how busy it keeps the scorer, whose cores it shares."""
    checkpoint = str(root / "checkpoint")
    save(checkpoint, DeepShadowsNet(seed=3), Card(name="untrained"))
    images = images_like_sky(10_000)
    lines = [
        "The tile's first cut, as an actor does it: CPU of the whole process, one call on each of some tiles, median.",
        "",
        "| tiles | classify, cut-outs/s | scorer alone | busy | first cut, CPU-ms each | cores for 100,000 a second |",
        "|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for fpacked in (False, True):
        kind = "fpack" if fpacked else "plain"
        seconds, busy = {}, []
        for count in (2, wanted.tiles):
            folder = root / f"classify-{kind}-{count}"
            places = [positions(write_tile(folder, number, fpacked=fpacked), POSITIONS)[2:] for number in range(count)]
            ra, dec = np.concatenate(places, axis=1)
            pq.write_table(
                pa.table({"object_id": np.arange(len(ra)), "ra": ra, "dec": dec}), root / f"{folder.name}.parquet"
            )
        tiles = sorted(scan_tiles(str(folder)).tiles, key=lambda files: files.tile_id)
        firsts = [
            timed(lambda files=files, at=at: ours(files, *at))[1] for files, at in zip(tiles, places, strict=True)
        ]
        cpu = statistics.median(firsts)
        for number in range(wanted.rounds):
            before, *_ = scorer_rate("fast", images)
            for count in (2, wanted.tiles):
                name = f"classify-{kind}-{count}"
                target = root / f"run-{name}-{number}"
                seconds[count] = classify(root / name, root / f"{name}.parquet", checkpoint, target)
            after, *_ = scorer_rate("fast", images)
            rate = (wanted.tiles - 2) * POSITIONS / (seconds[wanted.tiles] - seconds[2])
            busy.append((rate, (before + after) / 2))
        rate, alone = (statistics.median(column) for column in zip(*busy, strict=True))
        share = statistics.median(one / other for one, other in busy)
        each_ms = 1000 * cpu / POSITIONS
        lines.append(f"| {kind} | {rate:,.0f} | {alone:,.0f} | {share:.2f} | {each_ms:.3f} | {100 * each_ms:.0f} |")
        print(lines[-1], busy, flush=True)
        figures[kind] = {
            "classify_per_s": round(rate),
            "scorer_per_s": round(alone),
            "busy": round(share, 3),
            "cpu_ms": round(each_ms, 4),
        }
    return lines, figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="*", default=["contenders", "rates", "bound", "resampled", "classify"])
    parser.add_argument("--cutana", help="interpreter of an environment that has Cutana")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiles", type=int, default=7)
    wanted = parser.parse_args()
    print(machine(), flush=True)
    server = SeaweedFS()
    server.start()
    os.environ.update(server.environment())
    try:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            bucket = server.create_bucket("bench")
            parts: dict[str, Callable[[], tuple[list[str], dict[str, Any]]]] = {
                "contenders": lambda: contenders(root, wanted),
                "rates": lambda: rates(root, bucket, wanted),
                "bound": lambda: bound(root, wanted),
                "resampled": lambda: resampled(root, wanted),
                "classify": lambda: in_classify(root, wanted),
            }
            for part in wanted.parts:
                load = os.getloadavg()[0]
                lines, figures = parts[part]()
                began = f"{machine()}; load average {load:.0f} when it began"
                write_section(TITLES[part], [f"`python -m tests.benchmarks.bench_cutouts`; {began}.", "", *lines])
                write_figures(f"cutouts_{part}", {"machine": machine(), **figures})
    finally:
        server.stop()


if __name__ == "__main__":
    main()
