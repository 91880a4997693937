"""`detect`: sources of a survey's tiles, measured with sep. One Ray task a tile, one Parquet file in the end."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import ray

from deepshadows import settings, storage
from deepshadows.outcomes import ExitCode, InputError, NotFoundError, Summary, UsageError
from deepshadows.sky import extraction
from deepshadows.sky.cuts import CutCount, add_counts, des_cuts
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import TileFiles, read_tile
from deepshadows.verbs.progress import track
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.tasks import in_order


@dataclass(frozen=True, kw_only=True)
class TileResult:
    """Detections of one tile that pass the cuts, or the reason why there are none."""

    tile_id: str
    table: pa.Table | None = None
    found: int = 0
    counts: tuple[CutCount, ...] = ()
    reason: str = ""


def run(wanted: settings.Detect) -> Summary:
    """Detect on all tiles; unreadable ones are listed and give exit code 3.

    Raises
    ------
    UsageError
        There are no tiles, or the output is not a Parquet file.
    """
    output = storage.normalise(wanted.output)
    if not output.endswith(".parquet"):
        raise UsageError(f"{wanted.output}: --output must be a .parquet file")
    index = scan_tiles(storage.normalise(wanted.tiles), wanted.zero_point, wanted.survey)
    if not index.tiles and not index.problems:
        raise UsageError(f"{wanted.tiles}: no FITS tiles there; check --tiles")
    failed = [TileResult(tile_id=url, reason=reason) for url, reason in index.problems]
    good: list[TileResult] = []
    with ray_session(wanted.address):
        items = ((tile, wanted) for tile in index.tiles)
        for result in track(in_order(_detect, items), "detecting", len(index.tiles)):
            (failed if result.table is None else good).append(result)
    tables = [result.table for result in good if result.table is not None]
    table = pa.concat_tables([extraction.DETECTION_SCHEMA.empty_table(), *tables])
    storage.write_table(output, table)
    return _summary(output, good, failed, table.num_rows)


@ray.remote(num_cpus=1)
def _detect(files: TileFiles, wanted: settings.Detect) -> TileResult:
    return detect_tile(files, wanted)


def detect_tile(files: TileFiles, wanted: settings.Detect) -> TileResult:
    """Read one tile, detect, cut. What is wrong with a tile is its result; a store that fails stops the run."""
    bands = [band for band in extraction.MAGNITUDE_BANDS if band in files.bands]
    try:
        if not bands:
            raise InputError(f"tile {files.tile_id}: none of the bands g, r, i, z; it has {', '.join(files.bands)}")
        tile = read_tile(files, bands)
        table = extraction.detect(
            tile,
            threshold_sigma=wanted.threshold_sigma,
            min_area_pix=wanted.min_area_pix,
            seeing_arcsec=wanted.seeing_arcsec,
        )
    except (InputError, NotFoundError) as error:
        return TileResult(tile_id=files.tile_id, reason=str(error))
    if wanted.cuts == "none":
        return TileResult(tile_id=files.tile_id, table=table, found=table.num_rows)
    keep, counts = des_cuts(table, tile.pixel_scale_arcsec)
    return TileResult(tile_id=files.tile_id, table=table.filter(pa.array(keep)), found=table.num_rows, counts=counts)


def _summary(output: str, good: list[TileResult], failed: list[TileResult], rows: int) -> Summary:
    found = sum(result.found for result in good)
    counts = add_counts([result.counts for result in good if result.counts])
    lines = [f"{rows} detections from {len(good)} tiles in {output}"]
    if counts:
        lines.append(f"{found} found, {found - rows} rejected by the cuts (in sequence; alone; not measured):")
        lines += [f"  {c.rejected:8d} {c.alone:8d} {c.not_measured:8d}  {c.name}" for c in counts]
    if failed:
        lines.append(f"{len(failed)} of {len(good) + len(failed)} tiles could not be used:")
        lines += [f"  {result.tile_id}: {result.reason}" for result in failed]
    return Summary(
        verb="detect",
        output=output,
        exit_code=ExitCode.EXCEPTIONS if failed else ExitCode.DONE,
        figures={
            "rows": rows,
            "rows_found": found,
            "rows_rejected": found - rows,
            "rejected_by_cut": {count.name: count.rejected for count in counts},
            "rejected_by_cut_alone": {count.name: count.alone for count in counts},
            "not_measured_by_cut": {count.name: count.not_measured for count in counts},
            "units_planned": len(good) + len(failed),
            "units_done": len(good),
            "units_quarantined": len(failed),
            "problems": {result.tile_id: result.reason for result in failed},
        },
        text=tuple(lines),
    )
