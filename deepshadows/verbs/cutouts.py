"""`cutouts`: tiles with detections, or finished images, into cut-out shards; a truth table gives labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import ExitCode, InputError, NotFoundError, Summary, UsageError
from deepshadows.schema import Flag
from deepshadows.settings import Cutouts as CutoutsSettings
from deepshadows.sky.cutouts import Geometry, cut_parts
from deepshadows.sky.detections import Detections, read_detections
from deepshadows.sky.images.conversion import geometry_of
from deepshadows.sky.images.sources import list_sources
from deepshadows.sky.shards import Cutouts, shard_name, write_shard
from deepshadows.sky.tile_headers import FITS_SUFFIXES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import TileFiles, open_tile
from deepshadows.verbs.convert_images import (
    Converted,
    convert_images,
    count_rows,
    count_without_label,
    labels_by_position,
    read_truth,
)
from deepshadows.verbs.progress import track
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.tasks import in_order

REJECTS = "_rejects.parquet"
"""Beside the shards: identifier, where it was found, and the reason, of every row that is in none of them."""


def run(settings: CutoutsSettings) -> Summary:
    """Cut or convert, label and write; every row is written, listed as rejected, or counted.

    Raises
    ------
    UsageError
        There is nothing to cut or convert, or tiles come without detections.
    """
    source = storage.normalise(settings.input)
    output = storage.normalise(settings.output)
    geometry = geometry_of(settings)
    listing = None if settings.detections else list_sources(settings, source)
    if storage.list_objects(output, (".parquet",)):
        raise UsageError(f"{output}: holds Parquet files already; give an empty --output")
    with ray_session(settings.address):
        if listing is not None:
            done = convert_images(settings, listing, output)
        else:
            done = _from_tiles(settings, source, output, geometry)
    _write_rejects(output, done.rejects)
    return _summary(settings, output, done)


def _write_rejects(output: str, rejects: list[tuple[str, str, str]]) -> None:
    if rejects:
        columns = [pa.array(column, pa.string()) for column in zip(*rejects, strict=True)]
        storage.write_table(storage.join(output, REJECTS), pa.table(columns, ["object_id", "source", "reason"]))


def _summary(settings: CutoutsSettings, output: str, done: Converted) -> Summary:
    counts = +done.counts
    figures: dict[str, Any] = {
        "rows_planned": counts["planned"],
        "rows_written": counts["written"],
        "rows_rejected": counts["rejected"],
        "rows_ambiguous": counts["ambiguous"],
        "rows_unmatched": counts["unmatched"],
        "rows_quarantined": counts["quarantined"],
        "labels": {name: counts[f"label {name}"] for name in ("0", "1") if f"label {name}" in counts},
        "flags": {key.removeprefix("flag "): counts[key] for key in sorted(counts) if key.startswith("flag ")},
    }
    text = [
        f"{counts['planned']} rows = {counts['written']} written in {done.shards} shards + {counts['rejected']} "
        f"rejected + {counts['ambiguous']} ambiguous + {counts['unmatched']} unmatched + {counts['quarantined']} "
        "unreadable"
    ]
    if figures["labels"]:
        text.append(f"labels: {counts['label 1']} low-surface-brightness galaxies, {counts['label 0']} artifacts")
    if settings.truth is not None and settings.unmatched == "artifact":
        text.append("what the truth does not list is an artifact; --unmatched skip leaves it out")
    if figures["flags"]:
        text.append("flags: " + ", ".join(f"{name} {count}" for name, count in figures["flags"].items()))
    if done.rejects:
        text.append(f"rejects with their reasons: {storage.join(output, REJECTS)}; such as: {done.rejects[0][2]}")
    text.extend(f"problem: {problem}" for problem in done.problems)
    code = ExitCode.EXCEPTIONS if done.problems else ExitCode.DONE
    return Summary(verb="cutouts", output=output, exit_code=code, figures=figures, text=tuple(text))


def _from_tiles(settings: CutoutsSettings, source: str, output: str, geometry: Geometry) -> Converted:
    assert settings.detections is not None
    if not storage.list_objects(source, FITS_SUFFIXES) and storage.list_objects(source):
        raise UsageError(f"{source}: holds no FITS tiles; --detections is for tiles, finished images go without")
    index = scan_tiles(source, settings.zero_point, settings.survey)
    problems = [reason for _, reason in index.problems]
    if not index.tiles:
        raise UsageError("; ".join([f"{source}: no usable FITS tiles there", *problems[:3]]))
    detections = read_detections(storage.normalise(settings.detections), settings)
    labels = None
    if settings.truth is not None:
        labels = labels_by_position(read_truth(settings.truth), settings, detections.ra, detections.dec)
    good = detections.flags == 0
    owner = np.full(len(detections), -1, np.int32)
    owner[good] = index.owners(detections.ra[good], detections.dec[good])[0]
    done = Converted(counts=Counter(planned=len(detections)), problems=problems)
    for flag, rows in ((Flag.BAD_POSITION, ~good), (Flag.OFF_TILE, good & (owner < 0))):
        done.counts["rejected"] += int(np.count_nonzero(rows))
        done.counts["flag " + flag.name] = int(np.count_nonzero(rows))
        ids = detections.object_id.filter(pa.array(rows)).to_pylist()
        done.rejects += [(str(object_id), settings.detections, f"{flag.name}: {flag.text}") for object_id in ids]
    if labels is not None:
        done.counts.update(count_without_label(labels[owner >= 0]))
        owner[labels < 0] = -1
    task = ray.remote(num_cpus=1)(_cut_tile)
    items = []
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
            stem = storage.join(output, shard_name(number, tile.tile_id))
            items.append((tile, part, part_labels, geometry, stem, settings.shard_rows))
    for cut in track(in_order(task, items), "cutting tiles", total=len(items)):
        done.add(cut)
    return done


def _cut_tile(
    tile: TileFiles,
    detections: Detections,
    labels: NDArray[np.int8] | None,
    geometry: Geometry,
    stem: str,
    shard_rows: int,
) -> Converted:
    """Cut one tile's detections into its own shards; an unreadable tile is a problem, its rows quarantined."""
    done = Converted()
    parts = _parts(tile, detections, labels, geometry, shard_rows)
    while True:
        try:
            part = next(parts, None)
        except (InputError, NotFoundError) as error:
            done.problems.append(str(error))
            left = detections.object_id[done.counts["written"] :].to_pylist()
            done.counts["quarantined"] = len(left)
            done.rejects += [(str(object_id), tile.tile_id, str(error)) for object_id in left]
            return done
        if part is None:
            return done
        write_shard(f"{stem}-{done.shards:05d}.parquet", part)
        done.shards += 1
        done.counts.update(count_rows(part))


def _parts(
    tile: TileFiles, detections: Detections, labels: NDArray[np.int8] | None, geometry: Geometry, shard_rows: int
) -> Iterator[Cutouts]:
    """Cut-outs of one tile, those of a shard at a time."""
    stacks = cut_parts(open_tile(tile, geometry.bands), detections.ra, detections.dec, geometry, rows=shard_rows)
    for number, stack in enumerate(stacks):
        rows = slice(number * shard_rows, (number + 1) * shard_rows)
        yield Cutouts(
            object_id=detections.object_id[rows],
            ra=detections.ra[rows],
            dec=detections.dec[rows],
            images=stack.images,
            flags=stack.flags,
            label=None if labels is None else labels[rows],
            fov_arcsec=geometry.fov_arcsec,
            stretch=geometry.stretch.name,
            bands=geometry.bands,
        )
