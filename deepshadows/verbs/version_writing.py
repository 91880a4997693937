"""Writes a new version of a catalogue by Ray tasks: partitions, margins, id index and the files around them.

The driver holds counts and addresses, never rows; a task holds one chunk, one partition, one margin or one part of the
index. `publish` writes a version from runs alone. One that continues another is written the same way with a `Base`:

    with ray_session(settings.address), new_version(catalog) as version:
        base = continue_from(collection.current(catalog), gone)        # gone: "RUN/UNIT" of each unit whose rows go
        plan = plan_version(sources, id_type, partition_rows, margin_arcsec, base)
        tally = write_version(version, plan, keep_first=False)         # copies what the change does not touch
        storage.write(version.diff_url, ...)                           # and drift_url, of `reprocess`
        write_files(version, plan, tally, properties)
        hats_files.check_version(version)
    collection.swap(version)                                           # outside: it may be the current one now
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from deepshadows import storage
from deepshadows.catalog import collection, hats_files
from deepshadows.catalog.alignment import SKYMAP_ORDER, SkyCount, carried_counts
from deepshadows.catalog.collection import NewVersion, partitions_of
from deepshadows.catalog.exchange import retire, stage, write_partition
from deepshadows.catalog.healpix import UNPLACED, Partition
from deepshadows.catalog.id_index import index_schema, part_path, write_index_part
from deepshadows.catalog.margins import plan_margins, stage_margin, write_margin
from deepshadows.catalog.partitions import Repeats, catalog_schema, to_parquet
from deepshadows.catalog.pieces import Piece
from deepshadows.catalog.score_objects import in_chunks
from deepshadows.catalog.unit_rows import write_unit_rows
from deepshadows.catalog.version_folder import UNPLACED as UNPLACED_FILE
from deepshadows.catalog.version_folder import table_name
from deepshadows.outcomes import Failure
from deepshadows.schema import score_schema
from deepshadows.verbs.progress import track
from deepshadows.verbs.tasks import in_order
from deepshadows.verbs.version_plan import CHUNK_ROWS, VersionPlan

_COPIES = 16
"""Server-side copies under way at a time."""


@dataclass
class Tally:
    """What the tasks report, added up.

    Attributes
    ----------
    partitions : list of Partition
        Of the new table with their rows, in the order of the sky; those carried over too.
    rewritten : list of Partition
        Those of them that are not carried over.
    unplaced : int
        Rows without a place on the sky.
    left_out : int
        Repeats, those of partitions carried over too; `repeats` are those of partitions written.
    margins : list of Partition
        Cells that have a margin.
    size_bytes : dict
        Of table, margin and index, by these names.
    margin_pieces, indexed, unindexed : dict
        What partitions staged for margins, by cell, and for the id index, by part.
    """

    sky: SkyCount = field(default_factory=SkyCount)
    partitions: list[Partition] = field(default_factory=list)
    rewritten: list[Partition] = field(default_factory=list)
    unplaced: int = 0
    left_out: int = 0
    repeats: Repeats = field(default_factory=Repeats)
    units: list[pa.Table] = field(default_factory=list)
    margins: list[Partition] = field(default_factory=list)
    size_bytes: dict[str, int] = field(default_factory=dict)
    margin_pieces: dict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    indexed: dict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    unindexed: dict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))

    @property
    def placed(self) -> int:
        return sum(partition.rows for partition in self.partitions)


@contextmanager
def new_version(catalog: str) -> Iterator[NewVersion]:
    """A claimed version; on any error what was written of it is removed, the catalogue stays as it was."""
    version = collection.claim_version(catalog)
    try:
        yield version
    except BaseException:
        collection.abandon(version)
        raise


def write_version(version: NewVersion, plan: VersionPlan, *, keep_first: bool) -> Tally:
    """All rows of a version: partitions, rows without a place, margins, id index, unit counts.

    Raises
    ------
    Failure
        An object is in several units and `keep_first` does not decide, or rows were lost: a defect.
    """
    tally = Tally()
    division = ray.put(plan.division)
    _write_partitions(version, plan, division, keep_first, tally)
    _write_margins(version, plan, division, tally)
    _write_index(version, plan, division, tally)
    _write_units(version, plan, tally)
    storage.delete_folder(version.staging_url)
    return tally


def _stage(version: NewVersion, plan: VersionPlan, division: Any) -> dict[int, list[Piece]]:
    """Every row to the staged stream of its partition."""
    chunks = in_chunks(plan.sources, CHUNK_ROWS)
    items = (
        (chunk, plan.id_type, division, storage.join(version.staging_url, f"rows-{number:06d}.arrows"))
        for number, chunk in enumerate(chunks)
    )
    found = track(in_order(ray.remote(stage), items), "sorting rows by partition", len(chunks))
    return _by_number(piece for pieces in found for piece in pieces)


def _by_number(pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
    found: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        found[piece.partition].append(piece)
    return found


def _write_partitions(version: NewVersion, plan: VersionPlan, division: Any, keep_first: bool, tally: Tally) -> None:
    """One task a partition; the rows without a place are one more. Carried ones are copied by the store."""
    cells = plan.division.cells
    base = plan.change.base if plan.change else None
    before = {entry.path: storage.join(base.folder.table_url, entry.path) for entry in base.partitions} if base else {}
    items = []
    for number, pieces in sorted(_stage(version, plan, division).items()):
        path = cells[number].path if number != UNPLACED else ""
        url = storage.join(version.table_url, path) if path else version.unplaced_url
        left_out_url, by_unit = version.left_out_url(path or UNPLACED_FILE), plan.change is not None
        task = (number, pieces, url, keep_first, division, version.staging_url, before.get(path), left_out_url, by_unit)
        items.append(task)
    results = in_order(ray.remote(write_partition), items)
    rows_in = 0
    for written in track(results, "writing partitions", len(items)):
        rows_in += written.rows
        tally.repeats += written.repeats
        tally.units.append(written.units)
        tally.sky.add((written.pixels, written.pixel_rows))
        rows = written.rows - written.repeats.rows
        if written.cell == UNPLACED:
            tally.unplaced = rows
        else:
            tally.rewritten.append(Partition(cells[written.cell].order, cells[written.cell].pixel, rows))
        for staged, found in (
            (tally.margin_pieces, written.margin),
            (tally.indexed, written.indexed),
            (tally.unindexed, written.unindexed),
        ):
            for piece in found:
                staged[piece.partition].append(piece)
    _check_rows(plan, rows_in, tally, keep_first)
    _carry_partitions(version, plan, tally, keep_first)


def _check_rows(plan: VersionPlan, rows_in: int, tally: Tally, keep_first: bool) -> None:
    repeats = tally.repeats
    if repeats.rows and not keep_first:
        raise Failure(
            f"{repeats.rows} rows repeat the object_id of another unit, for example "
            f"{'; '.join(repeats.examples)}; nothing was published; `--duplicates first` keeps one row of each object"
        )
    if rows_in != plan.rows_in:
        raise Failure(f"rows in {plan.rows_in} != rows out {rows_in}: a defect of DeepShadows; nothing was published")


def _carry_partitions(version: NewVersion, plan: VersionPlan, tally: Tally, keep_first: bool) -> None:
    """Copy what the change does not touch, with its repeats; an empty file where no row is without a place."""
    tally.left_out = tally.repeats.rows
    if change := plan.change:
        before = change.base.folder
        pairs = [(_at(before.table_url, entry), _at(version.table_url, entry)) for entry in change.carried]
        if not change.unplaced:
            pairs.append((before.unplaced_url, version.unplaced_url))
            tally.unplaced = change.base.unplaced_rows
        paths, rows = change.carried_repeats()
        tally.left_out += rows
        if rows and not keep_first:
            raise Failure(
                f"{rows} rows repeat the object_id of another unit and were left out of {before.name}; nothing was "
                "published; `--duplicates first` goes on leaving them out"
            )
        pairs += [(before.left_out_url(path), version.left_out_url(path)) for path in paths]
        copy_files(pairs)
    if not tally.unplaced:
        storage.write(version.unplaced_url, to_parquet(score_schema(plan.id_type).empty_table()))
    tally.partitions = sorted([*plan.carried, *tally.rewritten], key=lambda partition: partition.first_index)


def _at(table_url: str, partition: Partition) -> str:
    return storage.join(table_url, partition.path)


def copy_files(pairs: list[tuple[str, str]]) -> None:
    """Let the store copy files, each from the first address to the second."""
    if not pairs:
        return
    with ThreadPoolExecutor(_COPIES) as pool:
        list(pool.map(storage.copy, *zip(*pairs, strict=True)))


def _write_margins(version: NewVersion, plan: VersionPlan, division: Any, tally: Tally) -> None:
    """One task a cell that has rows just outside it; margins that touch nothing of the change are copied."""
    old: dict[int, list[Piece]] = {}
    if change := plan.change:
        before_url = change.base.folder.margin_url
        margins = plan_margins(partitions_of(before_url), plan.division, [*change.touched, *tally.rewritten])
        items = (
            (
                before_url,
                margin,
                change.touched,
                division,
                storage.join(version.staging_url, f"old-margin-{number:06d}.arrows"),
            )
            for number, margin in enumerate(margins.stale)
        )
        old = _by_number(piece for pieces in in_order(ray.remote(stage_margin), items) for piece in pieces)
        copy_files([(_at(before_url, margin), _at(version.margin_url, margin)) for margin in margins.kept])
        tally.margins = margins.kept
    numbers = sorted({*old, *tally.margin_pieces})
    cells = [plan.division.cells[number] for number in numbers]
    todo = (
        (old.get(number, []), tally.margin_pieces.get(number, []), _at(version.margin_url, cell))
        for number, cell in zip(numbers, cells, strict=True)
    )
    results = track(in_order(ray.remote(write_margin), todo), "writing margins", len(cells))
    tally.margins += [Partition(cell.order, cell.pixel, rows) for cell, rows in zip(cells, results, strict=True)]
    tally.margins.sort(key=lambda partition: partition.first_index)


def _write_index(version: NewVersion, plan: VersionPlan, division: Any, tally: Tally) -> None:
    """One task a part whose identifiers came or went; the others are copied."""
    before: dict[int, str] = {}
    if change := plan.change:
        folder = change.base.folder
        before = {number: storage.join(folder.index_url, part.path) for number, part in enumerate(plan.parts)}
        there = {entry.path for entry in tally.rewritten}
        gone = [entry for entry in change.touched if entry.path not in there]
        items = ((_at(folder.table_url, entry), entry, plan.id_type, division, version.staging_url) for entry in gone)
        for pieces in in_order(ray.remote(retire), items):
            for piece in pieces:
                tally.unindexed[piece.partition].append(piece)
    changed = sorted({*tally.indexed, *tally.unindexed})
    todo = (
        (number, version.index_url, before.get(number), tally.indexed.get(number, []), tally.unindexed.get(number, []))
        for number in changed
    )
    for _ in track(in_order(ray.remote(write_index_part), todo), "writing the id index", len(changed)):
        pass
    kept = sorted(before.keys() - changed)
    copy_files([(before[number], storage.join(version.index_url, part_path(number))) for number in kept])


def _write_units(version: NewVersion, plan: VersionPlan, tally: Tally) -> None:
    """units.parquet: counts of what was written, and those of what was carried over."""
    tables = list(tally.units)
    if change := plan.change:
        units = change.base.units
        carried = {(entry.order, entry.pixel) for entry in change.carried}
        pairs = zip(units["Norder"].to_pylist(), units["Npix"].to_pylist(), strict=True)
        kept = [not change.unplaced if pixel is None else (order, pixel) in carried for order, pixel in pairs]
        tables.append(units.filter(pa.array(kept, pa.bool_())))
    write_unit_rows(version, tables)


def write_files(version: NewVersion, plan: VersionPlan, tally: Tally, properties: dict[str, Any]) -> None:
    """The HATS files around partitions, margins and index, checked against what was written.

    Parameters
    ----------
    properties : dict
        Provenance, see `provenance.properties`.
    """
    schema = catalog_schema(plan.id_type)
    for kind, url in (("table", version.table_url), ("margin", version.margin_url), ("index", version.index_url)):
        tally.size_bytes[kind] = sum(entry.size_bytes for entry in storage.list_objects(url, (".parquet",)))
    skymap = tally.sky.at_order(SKYMAP_ORDER)
    if plan.change:
        before = hats_files.read_skymap(plan.change.base.folder.table_url)
        skymap = skymap + carried_counts(before, plan.carried)
    properties = {**properties, "hats_estsize": tally.size_bytes["table"] // 1024}
    rows = hats_files.write_table_files(version.table_url, schema, tally.partitions, skymap, properties)
    if not rows == tally.placed == skymap.sum():
        raise Failure(
            f"{version.table_url}: {rows} rows in the files, {tally.placed} written, {skymap.sum()} on the map: "
            "a defect of DeepShadows; nothing published"
        )
    beside = {"primary_catalog": table_name(version.catalog), **hats_files.provenance_of(properties)}
    hats_files.write_margin_files(version.margin_url, schema, tally.margins, plan.margin_arcsec, beside)
    parts = storage.list_objects(version.index_url, (".parquet",))
    paths = [storage.relative(entry.url, version.index_url) for entry in parts]
    hats_files.write_index_files(version.index_url, index_schema(plan.id_type), paths, beside)
