"""The plan of `classify`: what the input holds, cut into work units, written down before work begins. No Ray."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.healpix import is_placed, sky_cells
from deepshadows.model.card import Card, read_card
from deepshadows.outcomes import InputError, UsageError
from deepshadows.run import record as run_record
from deepshadows.run.units import Unit, UnitKind, fingerprint, make_unit, shard_units, write_plan
from deepshadows.schema import DEC, RA, Flag, id_field
from deepshadows.settings import Classify
from deepshadows.sky.cutouts import METHOD, Geometry, same_scale
from deepshadows.sky.detections import Detections, read_detections
from deepshadows.sky.row_groups import read_rows
from deepshadows.sky.shards import list_shards, object_ids, open_shard, shard_geometry
from deepshadows.sky.stretch import stretch_named
from deepshadows.sky.tile_index import FITS_SUFFIXES, TileIndex, scan_tiles

SCORING_SETTINGS = ("precision", "unit_rows", "fov_arcsec")
"""Settings that decide a run's rows; the others only say where and how fast."""
OFF_TILE_ORDER = 3
"""Detections off every tile form units by cells of 7 degrees, so that a new tile changes those around it alone."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What was scored before by the same recipe and need not be again.

    Attributes
    ----------
    units : set of str
    shards : mapping
        Units of each shard by its address, etag and size: a shard that has not changed is not opened.
    id_type : str
        Of the identifiers; empty where nothing was scored before.
    """

    units: Set[str] = frozenset()
    shards: Mapping[tuple[str, str, int], list[Unit]] = field(default_factory=dict)
    id_type: str = ""


@dataclass(frozen=True)
class Planned:
    """A run that is written down: its record, what it has to score, and all units of the input."""

    record: run_record.RunRecord
    units: list[Unit]
    present: list[Unit]
    card: Card


def card_geometry(card: Card) -> Geometry:
    """What the network of `card` takes."""
    return Geometry(
        size_pix=card.size_pix,
        fov_arcsec=card.fov_arcsec,
        bands=tuple(card.bands),
        stretch=stretch_named(card.stretch),
    )


def scoring_recipe(settings: Classify, card: Card) -> str:
    """Hash of what the scores of a unit depend on beside the unit: settings, preprocessing and network."""
    return fingerprint(*_decisive(settings, card), [])


def _decisive(settings: Classify, card: Card) -> tuple[dict[str, Any], str]:
    shown = {name: getattr(settings, name) for name in SCORING_SETTINGS}
    return {**shown, **_preprocessing(card), "card": card.model_dump(exclude={"evaluations"})}, card.weights_sha256


def _preprocessing(card: Card) -> dict[str, Any]:
    return {"method": METHOD, "stretch": card.stretch, "fov_arcsec": card.fov_arcsec, "bands": card.bands}


def plan(settings: Classify, run: str, earlier: Earlier | None = None) -> Planned:
    """List the input, cut it into units, leave out those scored earlier, and claim the run directory.

    Raises
    ------
    UsageError
        There is no input, it does not fit the card, or the directory belongs to another run.
    """
    card = read_card(settings.checkpoint)
    earlier = earlier or Earlier()
    run_record.check_directory(run)
    shards = list_shards(settings.input)
    if settings.detections is None and not shards:
        hint = "tiles also need --detections" if storage.list_objects(settings.input, FITS_SUFFIXES) else ""
        raise UsageError(f"{settings.input}: no cut-out shards (*.parquet) there; {hint or 'check --input'}")
    detections = None
    if settings.detections is None:
        present, id_type = _plan_shards(settings, shards, card, earlier)
        units = [unit for unit in present if unit.unit not in earlier.units]
    else:
        present, id_type, table = _plan_tiles(settings, card)
        units, detections = _own_detections(
            [unit for unit in present if unit.unit not in earlier.units], table, run, settings.unit_rows
        )
    digest = fingerprint(*_decisive(settings, card), units)
    record = run_record.RunRecord(
        run=digest[:16],
        fingerprint=digest,
        recipe=scoring_recipe(settings, card),
        settings=settings.model_dump(exclude={"address"}),
        checkpoint={"name": card.name, "weights_sha256": card.weights_sha256},
        preprocessing=_preprocessing(card),
        id_type=id_type,
        units_planned=len(units),
        rows_planned=sum(unit.rows for unit in units),
        versions=run_record.software_versions(),
    )
    if not run_record.check_owner(record, run):
        run_record.check_fencing(run)
        if detections is not None:
            storage.create(*detections)
        write_plan(run, record.run, units)
        run_record.claim_directory(record, run)
    return Planned(record, units, present, card)


def _plan_shards(
    settings: Classify, shards: list[storage.StoredObject], card: Card, earlier: Earlier
) -> tuple[list[Unit], str]:
    units: list[Unit] = []
    id_types: Counter[str] = Counter()
    for shard in shards:
        if known := earlier.shards.get((shard.url, shard.etag, shard.size_bytes)):
            units.extend(known)
            id_types[earlier.id_type] += 1
            continue
        try:
            file = open_shard(shard.url)
            stated = shard_geometry(file.schema_arrow, shard.url)
            id_types[str(object_ids(pa.array([], file.schema_arrow.field("object_id").type), shard.url).type)] += 1
        except InputError as error:
            units.append(_unreadable(shard, str(error)))
            continue
        _check_fits(settings, card, *stated, shard.url)
        metadata = file.metadata
        groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        units.extend(shard_units(shard, metadata.num_rows, settings.unit_rows, groups))
    if not id_types:
        raise UsageError(
            f"{settings.input}: none of its {len(shards)} Parquet files is a cut-out shard: {units[0].source}"
        )
    if len(id_types) > 1:
        raise UsageError(f"{settings.input}: shards with different object_id types: {dict(id_types)}")
    return units, next(iter(id_types))


def _check_fits(
    settings: Classify, card: Card, fov_arcsec: float, stretch: str, bands: tuple[str, ...], url: str
) -> None:
    """Refuse shards that the network was not made for."""
    if (stretch, bands) != (card.stretch, tuple(card.bands)):
        raise UsageError(
            f"{url}: stretch {stretch}, bands {','.join(bands)}; the network takes {card.stretch}, "
            f"{','.join(card.bands)}; make the cut-outs again with `deepshadows cutouts`"
        )
    if not same_scale(fov_arcsec, settings.fov_arcsec or card.fov_arcsec):
        raise UsageError(
            f"{url}: field of {fov_arcsec} arcsec; the network takes {card.fov_arcsec} arcsec; make the cut-outs "
            "again, or state the other field with --fov-arcsec, which is recorded"
        )


def _unreadable(entry: storage.StoredObject, reason: str) -> Unit:
    return make_unit(
        kind=UnitKind.UNREADABLE.value, url=entry.url, etag=entry.etag, size_bytes=entry.size_bytes, source=reason
    )


def _plan_tiles(settings: Classify, card: Card) -> tuple[list[Unit], str, pa.Table]:
    """Give each detection to the tile where it lies deepest inside; one unit a tile, capped in rows.

    Returns units, type of the identifiers, and the detections in the order of the units.
    """
    assert settings.detections is not None
    index = scan_tiles(settings.input, settings.zero_point)
    if not index.tiles and not index.problems:
        raise UsageError(f"{settings.input}: no FITS tiles there; check --input")
    detections = read_detections(settings.detections, settings)
    owner = np.full(len(detections), -1, np.int32)
    placeable = detections.flags == 0
    owner[placeable] = index.owners(detections.ra[placeable], detections.dec[placeable])[0]
    flags = np.where(placeable & (owner < 0), Flag.OFF_TILE.bit, detections.flags).astype(np.int32)
    group = owner.astype(np.int64)
    group[owner < 0] = _off_tile_groups(detections.ra[owner < 0], detections.dec[owner < 0], flags[owner < 0])
    order = np.argsort(group, kind="stable")
    table = pa.table(
        [
            detections.object_id.take(pa.array(order)),
            pa.array(detections.ra[order], from_pandas=True),
            pa.array(detections.dec[order], from_pandas=True),
            pa.array(flags[order]),
        ],
        schema=pa.schema([id_field(detections.object_id.type), RA, DEC, pa.field("flags", pa.int32())]),
    )
    units = list(_tile_units(settings, index, table, group[order], card))
    for problem_url, reason in index.problems:
        units.append(_unreadable(storage.StoredObject(problem_url, 0, ""), reason))
    return units, str(detections.object_id.type), table


def _off_tile_groups(ra: NDArray[np.float64], dec: NDArray[np.float64], flags: NDArray[np.int32]) -> NDArray[np.int64]:
    """Negative numbers, one for each cell of the sky: -1 without a position, below that -2 - cell; shape (N,)."""
    group = np.full(len(ra), -1, np.int64)
    placed = is_placed(ra, dec, flags)
    group[placed] = -2 - sky_cells(ra[placed], dec[placed], OFF_TILE_ORDER)
    return group


def _tile_units(
    settings: Classify, index: TileIndex, table: pa.Table, group: NDArray[np.int64], card: Card
) -> Iterator[Unit]:
    """One unit for each group of rows, capped in rows; `first_row` is that of `table`."""
    present, begin = np.unique(group, return_index=True)
    for number, first, last in zip(present, begin, [*begin[1:], len(group)], strict=True):
        tile = index.tiles[number] if number >= 0 else None
        source = (
            json.dumps(
                {
                    "bands": {band: asdict(tile.bands[band]) for band in sorted(tile.bands) if band in card.bands},
                    "problems": tile.problems,
                }
            )
            if tile
            else ""
        )
        for start in range(int(first), int(last), settings.unit_rows):
            rows = min(settings.unit_rows, int(last) - start)
            yield make_unit(
                content=f"{start - first} {_digest(table.slice(start, rows))}",
                kind=(UnitKind.TILE if tile else UnitKind.UNPLACED).value,
                url="",
                etag="",
                size_bytes=sum(tile.bands[band].size_bytes for band in tile.bands if band in card.bands) if tile else 0,
                first_row=start,
                rows=rows,
                tile=tile.tile_id if tile else "",
                source=source,
            )


def _own_detections(
    units: list[Unit], table: pa.Table, run: str, unit_rows: int
) -> tuple[list[Unit], tuple[str, bytes]]:
    """The rows of `units` as a table of the run, its address that of its content, and the units that point there."""
    slices = [table.slice(unit.first_row, unit.rows) for unit in units if unit.kind != UnitKind.UNREADABLE]
    sink = io.BytesIO()
    own = pa.concat_tables([table.slice(0, 0), *slices])
    pq.write_table(own, sink, compression="zstd", row_group_size=min(unit_rows, 100_000))
    content = sink.getvalue()
    url = storage.join(run, "detections", f"{hashlib.sha256(content).hexdigest()[:16]}.parquet")
    pointing, first_row = [], 0
    for unit in units:
        of_table = unit.kind != UnitKind.UNREADABLE
        pointing.append(replace(unit, url=url, first_row=first_row) if of_table else unit)
        first_row += unit.rows if of_table else 0
    return pointing, (url, content)


def _digest(rows: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


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
