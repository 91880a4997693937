"""`cutouts`: tiles with detections, or npz files, into cut-out shards; a truth table gives labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import ExitCode, InputError, StorageError, Summary, UsageError
from deepshadows.schema import Flag, count_flags
from deepshadows.settings import Cutouts as CutoutsSettings
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.detections import Detections, read_detections, read_table
from deepshadows.sky.matching import AMBIGUOUS, label_by_truth
from deepshadows.sky.shards import Cutouts, read_npz, split, write_shard
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import TileFiles, read_tile
from deepshadows.verbs.progress import track
from deepshadows.verbs.ray_session import ray_session

GEOMETRY = Geometry(stretch=DES)


def run(settings: CutoutsSettings) -> Summary:
    """Cut, label and write; every detection is written, listed as rejected, or counted as ambiguous.

    Raises
    ------
    UsageError
        There is nothing to cut, or tiles come without detections.
    """
    source = storage.normalise(settings.input)
    output = storage.normalise(settings.output)
    archives = storage.list_objects(source, (".npz",))
    if archives and settings.detections:
        raise UsageError(
            f"{source}: holds .npz files, which are cut out already; give --detections with FITS tiles only"
        )
    if not archives and not settings.detections:
        raise UsageError(f"{source}: no .npz files there; to cut from FITS tiles give --detections")
    if storage.list_objects(output, (".parquet",)):
        raise UsageError(f"{output}: holds Parquet files already; give an empty --output")
    if archives:
        return _from_npz(settings, archives, output)
    with ray_session(settings.address):
        return _from_tiles(settings, source, output)


def _summary(output: str, counts: Counter[str], problems: list[str], shards: int) -> Summary:
    figures: dict[str, Any] = {
        "rows_planned": counts["planned"],
        "rows_written": counts["written"],
        "rows_rejected": counts["rejected"],
        "rows_ambiguous": counts["ambiguous"],
        "rows_quarantined": counts["quarantined"],
        "labels": {name: counts[f"label {name}"] for name in ("0", "1") if f"label {name}" in counts},
        "flags": {key.removeprefix("flag "): counts[key] for key in sorted(counts) if key.startswith("flag ")},
    }
    text = [
        f"{counts['planned']} detections = {counts['written']} written in {shards} shards + {counts['rejected']} "
        f"rejected + {counts['ambiguous']} ambiguous + {counts['quarantined']} on unreadable tiles"
    ]
    if figures["labels"]:
        text.append(f"labels: {counts['label 1']} low-surface-brightness galaxies, {counts['label 0']} artifacts")
    if figures["flags"]:
        text.append("flags: " + ", ".join(f"{name} {count}" for name, count in figures["flags"].items()))
    text.extend(f"problem: {problem}" for problem in problems)
    code = ExitCode.EXCEPTIONS if problems else ExitCode.DONE
    return Summary(verb="cutouts", output=output, exit_code=code, figures=figures, text=tuple(text))


def _from_npz(settings: CutoutsSettings, archives: list[storage.StoredObject], output: str) -> Summary:
    counts: Counter[str] = Counter()
    problems: list[str] = []
    shards = 0
    for archive in track(archives, "reading npz", total=len(archives)):
        try:
            cutouts = read_npz(archive.url, GEOMETRY)
        except InputError as error:
            problems.append(str(error))
            continue
        counts["planned"] += len(cutouts)
        if settings.truth is not None:
            labels = _labels(settings.truth, settings.radius_arcsec, cutouts.ra, cutouts.dec)
            counts["ambiguous"] += int(np.count_nonzero(labels < 0))
            cutouts = replace(cutouts, label=labels).take(labels >= 0)
        stem = storage.name_of(archive.url).removesuffix(".npz")
        for number, part in enumerate(split(cutouts, settings.shard_rows)):
            write_shard(storage.join(output, f"{stem}-{number:05d}.parquet"), part)
            shards += 1
            counts.update(_count(part))
    if not shards:
        raise InputError("; ".join(problems) or f"{settings.input}: no images in it")
    return _summary(output, counts, problems, shards)


def _count(part: Cutouts) -> Counter[str]:
    counts = Counter({f"flag {name}": count for name, count in count_flags(part.flags).items()})
    counts["written"] = len(part)
    if part.label is not None:
        counts["label 1"] = int(np.count_nonzero(part.label == 1))
        counts["label 0"] = int(np.count_nonzero(part.label == 0))
    return counts


def _from_tiles(settings: CutoutsSettings, source: str, output: str) -> Summary:
    assert settings.detections is not None
    index = scan_tiles(source, settings.zero_point)
    problems = [reason for _, reason in index.problems]
    if not index.tiles:
        raise UsageError("; ".join([f"{source}: no usable FITS tiles there", *problems[:3]]))
    detections = read_detections(storage.normalise(settings.detections), settings)
    labels = None
    if settings.truth is not None:
        labels = _labels(settings.truth, settings.radius_arcsec, detections.ra, detections.dec)
    good = detections.flags == 0
    owner = np.full(len(detections), -1, np.int32)
    owner[good] = index.owners(detections.ra[good], detections.dec[good])[0]
    counts: Counter[str] = Counter(planned=len(detections))
    counts["rejected"] = int(np.count_nonzero(owner < 0))
    counts["flag " + Flag.BAD_POSITION.name] = int(np.count_nonzero(~good))
    counts["flag " + Flag.OFF_TILE.name] = int(np.count_nonzero(good & (owner < 0)))
    if labels is not None:
        counts["ambiguous"] = int(np.count_nonzero((labels < 0) & (owner >= 0)))
        owner[labels < 0] = -1
    task = ray.remote(num_cpus=1)(_cut_tile)
    pending = []
    for number, tile in enumerate(index.tiles):
        rows = np.flatnonzero(owner == number)
        if len(rows):
            part = Detections(
                object_id=detections.object_id.take(pa.array(rows)),
                ra=detections.ra[rows],
                dec=detections.dec[rows],
                flags=detections.flags[rows],
            )
            part_labels = None if labels is None else labels[rows]
            pending.append(task.remote(tile, part, part_labels, output, settings.shard_rows))
    shards = 0
    for reference in track(pending, "cutting tiles", total=len(pending)):
        tile_counts, tile_shards, problem = ray.get(reference)
        counts.update(tile_counts)
        shards += tile_shards
        problems += [problem] if problem else []
    return _summary(output, +counts, problems, shards)


def _labels(
    truth_url: str, radius_arcsec: float, ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Labels by position; a row without a usable one is ambiguous."""
    labels = np.full(len(ra), AMBIGUOUS, np.int8)
    placed = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    truth = read_table(storage.normalise(truth_url))
    labels[placed] = label_by_truth(ra[placed], dec[placed], truth, radius_arcsec)
    return labels


def _cut_tile(
    tile: TileFiles, detections: Detections, labels: NDArray[np.int8] | None, output: str, shard_rows: int
) -> tuple[Counter[str], int, str | None]:
    """Cut one tile's detections into its own shards; an unreadable tile is a problem, its rows quarantined."""
    try:
        pixels = read_tile(tile, GEOMETRY.bands)
    except (InputError, StorageError) as error:
        return Counter(quarantined=len(detections)), 0, str(error)
    counts: Counter[str] = Counter()
    shards = 0
    for start in range(0, len(detections), shard_rows):
        rows = slice(start, start + shard_rows)
        stack = cut(pixels, detections.ra[rows], detections.dec[rows], GEOMETRY)
        part = Cutouts(
            object_id=detections.object_id[rows],
            ra=detections.ra[rows],
            dec=detections.dec[rows],
            images=stack.images,
            flags=stack.flags,
            label=None if labels is None else labels[rows],
            fov_arcsec=GEOMETRY.fov_arcsec,
            stretch=GEOMETRY.stretch.name,
        )
        write_shard(storage.join(output, f"{tile.tile_id}-{shards:05d}.parquet"), part)
        shards += 1
        counts.update(_count(part))
    return counts, shards, None
