"""The plan of `classify`: what the input holds, cut into work units, written down before work begins. No Ray."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
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


@dataclass(frozen=True)
class Planned:
    """A run that is written down: its record and units."""

    record: run_record.RunRecord
    units: list[Unit]
    card: Card


def card_geometry(card: Card) -> Geometry:
    """What the network of `card` takes."""
    return Geometry(
        size_pix=card.size_pix,
        fov_arcsec=card.fov_arcsec,
        bands=tuple(card.bands),
        stretch=stretch_named(card.stretch),
    )


def plan(settings: Classify, run: str) -> Planned:
    """List the input, cut it into units, and claim the run directory.

    Raises
    ------
    UsageError
        There is no input, it does not fit the card, or the directory belongs to another run.
    """
    card = read_card(settings.checkpoint)
    run_record.check_directory(run)
    shards = list_shards(settings.input)
    if settings.detections is None and not shards:
        hint = "tiles also need --detections" if storage.list_objects(settings.input, FITS_SUFFIXES) else ""
        raise UsageError(f"{settings.input}: no cut-out shards (*.parquet) there; {hint or 'check --input'}")
    detections = None
    if settings.detections is None:
        units, id_type = _plan_shards(settings, shards, card)
    else:
        units, id_type, detections = _plan_tiles(settings, run, card)
    shown = {name: getattr(settings, name) for name in SCORING_SETTINGS}
    preprocessing = {"method": METHOD, "stretch": card.stretch, "fov_arcsec": card.fov_arcsec, "bands": card.bands}
    digest = fingerprint(
        {**shown, **preprocessing, "card": card.model_dump(exclude={"evaluations"})}, card.weights_sha256, units
    )
    record = run_record.RunRecord(
        run=digest[:16],
        fingerprint=digest,
        settings=settings.model_dump(exclude={"address"}),
        checkpoint={"name": card.name, "weights_sha256": card.weights_sha256},
        preprocessing=preprocessing,
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
    return Planned(record, units, card)


def _plan_shards(settings: Classify, shards: list[storage.StoredObject], card: Card) -> tuple[list[Unit], str]:
    units: list[Unit] = []
    id_types: Counter[str] = Counter()
    for shard in shards:
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
    return units, next(iter(id_types), "int64")


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


def _plan_tiles(settings: Classify, run: str, card: Card) -> tuple[list[Unit], str, tuple[str, bytes]]:
    """Give each detection to the tile where it lies deepest inside; one unit a tile, capped in rows.

    Returns units, type of the identifiers, and the detections in the order of the units: address and content. The
    address is that of the content, so that no other run can put its own there.
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
    order = np.argsort(owner, kind="stable")
    table = pa.table(
        [
            detections.object_id.take(pa.array(order)),
            pa.array(detections.ra[order], from_pandas=True),
            pa.array(detections.dec[order], from_pandas=True),
            pa.array(flags[order]),
        ],
        schema=pa.schema([id_field(detections.object_id.type), RA, DEC, pa.field("flags", pa.int32())]),
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=min(settings.unit_rows, 100_000))
    content = sink.getvalue()
    url = storage.join(run, "detections", f"{hashlib.sha256(content).hexdigest()[:16]}.parquet")
    units = list(_tile_units(settings, url, index, table, owner[order], card))
    for problem_url, reason in index.problems:
        units.append(_unreadable(storage.StoredObject(problem_url, 0, ""), reason))
    return units, str(detections.object_id.type), (url, content)


def _tile_units(
    settings: Classify, url: str, index: TileIndex, table: pa.Table, owner: np.ndarray, card: Card
) -> Iterator[Unit]:
    boundaries = np.searchsorted(owner, np.arange(-1, len(index.tiles) + 1))
    for number in range(-1, len(index.tiles)):
        first, last = int(boundaries[number + 1]), int(boundaries[number + 2])
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
        for start in range(first, last, settings.unit_rows):
            rows = min(settings.unit_rows, last - start)
            yield make_unit(
                content=_digest(table.slice(start, rows)),
                kind=(UnitKind.TILE if tile else UnitKind.UNPLACED).value,
                url=url,
                etag="",
                size_bytes=sum(tile.bands[band].size_bytes for band in tile.bands) if tile else 0,
                first_row=start,
                rows=rows,
                tile=tile.tile_id if tile else "",
                source=source,
            )


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
