"""The plan of `classify`: what the input holds, cut into work units, written down before work begins. No Ray."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepshadows import storage
from deepshadows.model.card import Card, read_card
from deepshadows.outcomes import InputError, UsageError
from deepshadows.run import record as run_record
from deepshadows.run.patience import patiently
from deepshadows.run.plan import Draft, Plan
from deepshadows.run.units import TILE_UNIT_ROWS, Unit, UnitKind, make_unit, shard_units, unit_size_rows
from deepshadows.schema import IMAGE_BYTES
from deepshadows.settings import Classify
from deepshadows.sky.cutouts import METHOD, Geometry, same_scale
from deepshadows.sky.detections import list_tables
from deepshadows.sky.shards import list_shards, object_ids, open_shard, shard_geometry
from deepshadows.sky.stretch import stretch_named
from deepshadows.sky.tile_headers import FITS_SUFFIXES
from deepshadows.verbs.plan_detections import check_detections, group_by_tile, index_tiles, own_detections, tile_units

SCORING_SETTINGS = ("precision", "fov_arcsec")
"""Settings that decide a row's scores; the size of units decides which units there are, and that alone."""
WHERE = {"address", "output"}
HOW_FAST = {"scorers", "threads", "cut_threads", "batch_size", "retries", "no_progress_s"}
"""Settings that may be others when a run goes on, as those of WHERE."""
FOOTER_THREADS = 16
FOOTERS_AT_ONCE = 2_000


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
    headers : str, optional
        Folder of what the headers of tiles told, see `header_journal`; without it, in the run directory.
    """

    units: Set[str] = frozenset()
    shards: Mapping[tuple[str, str, int], list[Unit]] = field(default_factory=dict)
    id_type: str = ""
    headers: str | None = None


@dataclass(frozen=True)
class Planned:
    """A run that is written down: its record, what it has to score, and all units of the input, read in blocks."""

    record: run_record.RunRecord
    units: Draft | Plan
    present: Draft | Plan
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
    return Draft().fingerprint(*_decisive(settings, card))


def _decisive(settings: Classify, card: Card) -> tuple[dict[str, Any], str]:
    shown = {name: getattr(settings, name) for name in SCORING_SETTINGS}
    described = card.model_dump(exclude={"evaluations", "resampling"})  # `method` says how it is resampled
    return {**shown, **_preprocessing(settings, card), "card": described}, card.weights_sha256


def _preprocessing(settings: Classify, card: Card) -> dict[str, Any]:
    """How pixels are prepared; the field is the one that the network is fed."""
    fov_arcsec = settings.fov_arcsec or card.fov_arcsec
    return {"method": METHOD, "stretch": card.stretch, "fov_arcsec": fov_arcsec, "bands": card.bands}


def plan(settings: Classify, run: str, earlier: Earlier | None = None) -> Planned:
    """List the input, cut it into units, leave out those scored earlier, and claim the run directory.

    A run whose input lists as it did when it was planned is not planned again.

    Raises
    ------
    UsageError
        There is no input, it does not fit the card, or the directory belongs to another run.
    """
    card = read_card(settings.checkpoint)
    run_record.check_directory(run)
    shards = _shards_of(settings)
    inventory = _inventory(settings, card, shards, earlier)
    existing = run_record.read_record(run)
    if existing is not None and existing.inventory == inventory and not (earlier and earlier.units):
        return Planned(existing, Plan(run, existing), Plan(run, existing), card)
    with tempfile.TemporaryDirectory(prefix="deepshadows-plan-") as scratch:
        cut = _cut_shards if settings.detections is None else partial(_cut_tiles, scratch=Path(scratch))
        units, present, id_type = cut(settings, run, card, shards, earlier or Earlier(), new=existing is None)
    digest = units.fingerprint(*_decisive(settings, card))
    record = run_record.RunRecord(
        run=digest[:16],
        fingerprint=digest,
        recipe=scoring_recipe(settings, card),
        inventory=inventory,
        plan_parts=units.parts,
        settings=settings.model_dump(exclude={"address"}),
        checkpoint={"name": card.name, "weights_sha256": card.weights_sha256},
        preprocessing=_preprocessing(settings, card),
        id_type=id_type,
        units_planned=len(units),
        rows_planned=units.rows,
        versions=run_record.software_versions(),
    )
    if existing is None:
        run_record.check_fencing(run)
        units.write(run, record.run)
        record = run_record.claim_directory(record, run)
    else:
        run_record.check_owner(record, run)
        record = existing
    return Planned(record, units, present, card)


def _inventory(settings: Classify, card: Card, shards: list[storage.StoredObject], earlier: Earlier | None) -> str:
    """Hash of all that the plan follows from: settings, network, what was scored earlier, listing of the input."""
    listed = list(shards)
    if settings.detections is not None:
        listed = [*storage.list_objects(settings.input, FITS_SUFFIXES), *list_tables(settings.detections)]
    named = settings.model_dump(exclude=WHERE | HOW_FAST)
    known = sorted(earlier.units) if earlier is not None else None
    digest = hashlib.sha256(json.dumps([_decisive(settings, card), named, known], default=str).encode())
    for entry in listed:
        digest.update(json.dumps([entry.url, entry.size_bytes, entry.etag]).encode())
    return digest.hexdigest()


def _shards_of(settings: Classify) -> list[storage.StoredObject]:
    """The input's shards, where they are what is to be scored."""
    if settings.detections is not None:
        return []
    shards = list_shards(settings.input)
    if not shards:
        hint = "tiles also need --detections" if storage.list_objects(settings.input, FITS_SUFFIXES) else ""
        raise UsageError(f"{settings.input}: no cut-out shards (*.parquet) there; {hint or 'check --input'}")
    return shards


def _cut_tiles(
    settings: Classify,
    run: str,
    card: Card,
    shards: list[storage.StoredObject],
    earlier: Earlier,
    *,
    new: bool,
    scratch: Path,
) -> tuple[Draft, Draft, str]:
    """Units of detections: those to score, all, and the type of the identifiers."""
    check_detections(settings)
    index = index_tiles(settings, earlier.headers or (storage.join(run, "tiles") if new else None))
    groups = group_by_tile(settings, index, scratch)
    unit_rows = unit_size_rows(settings.unit_rows, settings.unit_mib, groups.rows, TILE_UNIT_ROWS)
    if new:
        run_record.check_fencing(run)
    present = Draft()

    def wanted() -> Iterator[tuple[Unit, pa.Table]]:
        for unit, table in tile_units(groups, index, card, unit_rows):
            present.add(unit)
            if unit.unit not in earlier.units:
                yield unit, table

    units = Draft(own_detections(wanted(), run, unit_rows, keep=new))
    for url, reason in index.problems:
        unit = _unreadable(storage.StoredObject(url, 0, ""), reason)
        present.add(unit)
        if unit.unit not in earlier.units:
            units.add(unit)
    return units, present, str(groups.id_type)


@dataclass(frozen=True)
class _Footer:
    """What a shard's footer tells, or why it is none."""

    id_type: str = ""
    rows: int = 0
    row_group_rows: tuple[int, ...] = ()
    problem: str = ""


def _cut_shards(
    settings: Classify,
    run: str,
    card: Card,
    shards: list[storage.StoredObject],
    earlier: Earlier,
    *,
    new: bool,
) -> tuple[Draft, Draft, str]:
    """Units of shards: those to score, all, and the type of the identifiers."""
    unit_rows = unit_size_rows(settings.unit_rows, settings.unit_mib, sum(s.size_bytes for s in shards) // IMAGE_BYTES)
    units = Draft()
    present = Draft() if earlier.units else units
    id_types: Counter[str] = Counter()
    problem = ""
    for shard, footer in _footers(settings, card, shards, earlier):
        if footer is None:
            cut: Iterable[Unit] = earlier.shards[shard.url, shard.etag, shard.size_bytes]
            id_types[earlier.id_type] += 1
        elif footer.problem:
            cut, problem = [_unreadable(shard, footer.problem)], problem or footer.problem
        else:
            cut = shard_units(shard, footer.rows, unit_rows, list(footer.row_group_rows))
            id_types[footer.id_type] += 1
        for unit in cut:
            present.add(unit)
            if present is not units and unit.unit not in earlier.units:
                units.add(unit)
    if not id_types:
        raise UsageError(f"{settings.input}: none of its {len(shards)} Parquet files is a cut-out shard: {problem}")
    if len(id_types) > 1:
        raise UsageError(f"{settings.input}: shards with different object_id types: {dict(id_types)}")
    return units, present, next(iter(id_types))


def _footers(
    settings: Classify, card: Card, shards: list[storage.StoredObject], earlier: Earlier
) -> Iterator[tuple[storage.StoredObject, _Footer | None]]:
    """Each shard with its footer, None where its units are known; read in many threads, in the order of the shards."""

    def read(shard: storage.StoredObject) -> _Footer | None:
        known = (shard.url, shard.etag, shard.size_bytes) in earlier.shards
        return None if known else _footer(settings, card, shard)

    remaining = iter(shards)
    with ThreadPoolExecutor(FOOTER_THREADS, thread_name_prefix="footers") as pool:
        while some := list(islice(remaining, FOOTERS_AT_ONCE)):
            yield from zip(some, pool.map(read, some), strict=True)


def _footer(settings: Classify, card: Card, shard: storage.StoredObject) -> _Footer:
    try:
        file = patiently(shard.url, partial(open_shard, shard.url))
        stated = shard_geometry(file.schema_arrow, shard.url)
        id_type = object_ids(pa.array([], file.schema_arrow.field("object_id").type), shard.url).type
    except InputError as error:
        return _Footer(problem=str(error))
    _check_fits(settings, card, *stated, shard.url)
    metadata = file.metadata
    groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return _Footer(str(id_type), metadata.num_rows, groups)


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
