"""Units of detections on tiles: each detection once, with the tile where it lies deepest inside. No Ray."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.healpix import is_placed, sky_cells
from deepshadows.model.card import Card
from deepshadows.outcomes import UsageError
from deepshadows.run.units import Unit, UnitKind, make_unit
from deepshadows.schema import Flag
from deepshadows.settings import Classify
from deepshadows.sky.detections import BLOCK_ROWS, Detections, detection_blocks
from deepshadows.sky.row_groups import read_rows
from deepshadows.sky.tile_groups import TileGroups
from deepshadows.sky.tile_index import TileIndex, scan_tiles

OFF_TILE_ORDER = 3
"""Detections off every tile form units by cells of 7 degrees, so that a new tile changes those around it alone."""
PART_ROWS = 2_000_000
"""Of one object of the run's own detections: some 50 MB."""


def check_detections(settings: Classify) -> None:
    """Refuse a table without the columns, and a field that nothing would be cut to, before anything else is done."""
    assert settings.detections is not None
    if settings.fov_arcsec is not None:
        raise UsageError(
            f"--fov-arcsec {settings.fov_arcsec:g}: it is for shards, and tiles are cut to the field of the network's "
            "card; leave it out"
        )
    next(detection_blocks(settings.detections, settings, block_rows=1))


def index_tiles(settings: Classify, journal: str | None) -> TileIndex:
    """The tiles of the input.

    Raises
    ------
    UsageError
        There are none.
    """
    index = scan_tiles(settings.input, settings.zero_point, settings.survey, journal=journal)
    if not index.tiles and not index.problems:
        raise UsageError(f"{settings.input}: no FITS tiles there; check --input")
    return index


def group_by_tile(settings: Classify, index: TileIndex, scratch: Path, block_rows: int = BLOCK_ROWS) -> TileGroups:
    """All detections by the tile that owns them, or by cells of the sky where none does; read a block at a time."""
    assert settings.detections is not None
    groups = TileGroups(scratch)
    for block in detection_blocks(settings.detections, settings, block_rows):
        owner = np.full(len(block), -1, np.int32)
        placeable = block.flags == 0
        owner[placeable] = index.owners(block.ra[placeable], block.dec[placeable])[0]
        flags = np.where(placeable & (owner < 0), Flag.OFF_TILE.bit, block.flags).astype(np.int32)
        group = owner.astype(np.int64)
        off = owner < 0
        group[off] = _off_tile_groups(block.ra[off], block.dec[off], flags[off])
        groups.add(replace(block, flags=flags), group, settings.detections)
    return groups


def _off_tile_groups(ra: NDArray[np.float64], dec: NDArray[np.float64], flags: NDArray[np.int32]) -> NDArray[np.int64]:
    """Negative numbers, one for each cell of the sky: -1 without a position, below that -2 - cell; shape (N,)."""
    group = np.full(len(ra), -1, np.int64)
    placed = is_placed(ra, dec, flags)
    group[placed] = -2 - sky_cells(ra[placed], dec[placed], OFF_TILE_ORDER)
    return group


def tile_units(groups: TileGroups, index: TileIndex, card: Card, unit_rows: int) -> Iterator[tuple[Unit, pa.Table]]:
    """One unit for each group of rows, capped in rows, with its rows; it does not say yet where these will lie."""
    for number, first, rows in groups.groups():
        tile = index.tiles[number] if number >= 0 else None
        bands = {band: tile.bands[band] for band in sorted(tile.bands) if band in card.bands} if tile else {}
        source = ""
        if tile:
            stated = {band: asdict(source) for band, source in bands.items()}
            source = json.dumps({"bands": stated, "problems": tile.problems})
        for start in range(0, rows, unit_rows):
            table = groups.read(first + start, min(unit_rows, rows - start))
            unit = make_unit(
                content=f"{start} {_digest(table)}",
                kind=(UnitKind.TILE if tile else UnitKind.UNPLACED).value,
                url="",
                etag="",
                size_bytes=sum(band.size_bytes for band in bands.values()),
                rows=table.num_rows,
                tile=tile.tile_id if tile else "",
                source=source,
            )
            yield unit, table


def _digest(rows: pa.Table) -> str:
    digest = hashlib.sha256()
    for column in rows.columns:
        if pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            values = column.fill_null(np.nan) if pa.types.is_floating(column.type) else column
            digest.update(np.ascontiguousarray(values.to_numpy()).tobytes())
    return digest.hexdigest()


def own_detections(units: Iterator[tuple[Unit, pa.Table]], run: str, unit_rows: int, *, keep: bool) -> Iterator[Unit]:
    """The units, pointing to their rows, which go to RUN/detections in objects whose address is that of their content.

    Parameters
    ----------
    keep : bool
        Write these objects; False where only the units are wanted.
    """
    waiting: list[tuple[Unit, pa.Table]] = []
    rows = 0
    for unit, table in units:
        if waiting and rows + table.num_rows > PART_ROWS:
            yield from _one_part(waiting, run, unit_rows, keep)
            waiting, rows = [], 0
        waiting.append((unit, table))
        rows += table.num_rows
    if waiting:
        yield from _one_part(waiting, run, unit_rows, keep)


def _one_part(waiting: list[tuple[Unit, pa.Table]], run: str, unit_rows: int, keep: bool) -> Iterator[Unit]:
    sink = io.BytesIO()
    table = pa.concat_tables([table for _, table in waiting])
    pq.write_table(table, sink, compression="zstd", row_group_size=min(unit_rows, 100_000))
    content = sink.getvalue()
    url = storage.join(run, "detections", f"{hashlib.sha256(content).hexdigest()[:16]}.parquet")
    if keep:
        storage.create(url, content)
    first_row = 0
    for unit, own in waiting:
        yield replace(unit, url=url, first_row=first_row)
        first_row += own.num_rows


def detections_of(unit: Unit) -> Detections:
    """The detections of a tile's unit, from the run's plan."""
    file = pq.ParquetFile(storage.open_arrow(unit.url))
    table = read_rows(file, unit.first_row, unit.rows)
    return Detections(
        object_id=table["object_id"].combine_chunks(),
        ra=np.array(table["ra"].to_numpy()),
        dec=np.array(table["dec"].to_numpy()),
        flags=table["flags"].to_numpy(),
    )
