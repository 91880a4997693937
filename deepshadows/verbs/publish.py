"""`deepshadows publish`: finished runs become a new version of a HATS catalogue.

Two passes over the score objects, as Ray tasks: count rows by pixel, then hand every row to its partition. The driver
holds counts and addresses, never rows; a task holds one chunk or one partition.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from deepshadows import settings, storage
from deepshadows.catalog import collection, hats_files, provenance
from deepshadows.catalog.alignment import SKYMAP_ORDER, SkyCount
from deepshadows.catalog.collection import NewVersion
from deepshadows.catalog.exchange import Piece, count_chunk, stage, write_partition
from deepshadows.catalog.healpix import UNPLACED, Partition
from deepshadows.catalog.partitions import Repeats, catalog_schema, to_parquet
from deepshadows.catalog.score_objects import ScoreSource, arrow_id_type, in_chunks
from deepshadows.outcomes import Failure, InputError, Summary
from deepshadows.run.manifest import Manifest, read_manifest
from deepshadows.schema import score_schema
from deepshadows.verbs.progress import track
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.tasks import in_order

CHUNK_ROWS = 500_000
"""Rows of one task of the two passes: about 60 MB."""


@dataclass
class Tally:
    """What the tasks report, added up."""

    counts: SkyCount = field(default_factory=SkyCount)
    partitions: list[Partition] = field(default_factory=list)
    pieces: dict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[int, int] = field(default_factory=dict)
    size_bytes: int = 0
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def unplaced(self) -> int:
        return self.rows.get(UNPLACED, 0)

    @property
    def placed(self) -> int:
        return sum(self.rows.values()) - self.unplaced


def run(settings: settings.Publish) -> Summary:
    """Publish finished runs; the catalogue changes at the very end, by one conditional write."""
    started = time.monotonic()
    catalog = storage.normalise(settings.catalog)
    urls = [storage.normalise(url) for url in settings.run]
    manifests = [read_manifest(url) for url in urls]
    runs = [_facts(url, manifest) for url, manifest in zip(urls, manifests, strict=True)]
    provenance.check_runs(runs)
    sources = [source for facts, manifest in zip(runs, manifests, strict=True) for source in _sources(facts, manifest)]
    rows_in = sum(source.rows for source in sources)
    if rows_in == 0:
        raise InputError(f"{', '.join(urls)}: nothing to publish, the runs hold no rows; {catalog} is unchanged")
    collection.check_store(catalog)
    with ray_session(settings.address), _new_version(catalog) as version:
        tally = _count(sources, settings.partition_rows)
        _exchange(sources, version, tally)
        _write(version, tally, settings)
        _check_rows(rows_in, tally, settings)
        storage.delete_folder(version.staging_url)
        _finish(version, tally, runs, settings, rows_in)
    collection.swap(version)  # out of reach of what removes an unfinished version: it may be the current one now
    return _summary(version, tally, runs, rows_in, time.monotonic() - started)


def _facts(url: str, manifest: Manifest) -> provenance.RunFacts:
    rows = {name: getattr(manifest, f"rows_{name}") for name in ("planned", "scored", "unscored", "quarantined")}
    return provenance.RunFacts(
        url=url,
        run=manifest.run,
        fingerprint=manifest.fingerprint,
        id_type=manifest.id_type,
        checkpoint=manifest.checkpoint,
        preprocessing=manifest.preprocessing,
        settings=manifest.settings,
        engine=manifest.engine,
        versions=manifest.versions,
        rows=rows,
    )


def _sources(facts: provenance.RunFacts, manifest: Manifest) -> Iterator[ScoreSource]:
    for score in manifest.scores:
        if score.url.startswith("/") or "://" in score.url or ".." in score.url.split("/"):
            raise InputError(f"{facts.url}: its manifest names a score object outside the run: {score.url}")
        url = storage.join(facts.url, score.url)
        yield ScoreSource(url, score.size_bytes, score.rows, facts.fingerprint, facts.id_type)


@contextmanager
def _new_version(catalog: str) -> Iterator[NewVersion]:
    """A claimed version; on any error what was written of it is removed, the catalogue stays as it was."""
    version = collection.claim_version(catalog)
    try:
        yield version
    except BaseException:
        collection.abandon(version)
        raise


def _count(sources: list[ScoreSource], partition_rows: int) -> Tally:
    """First pass: rows by pixel, and the partitions that follow."""
    tally = Tally()
    chunks = in_chunks(sources, CHUNK_ROWS)
    results = in_order(ray.remote(count_chunk), ((chunk,) for chunk in chunks))
    for part in track(results, "counting rows on the sky", len(chunks)):
        tally.counts.add(part)
    tally.partitions = tally.counts.align(partition_rows)
    return tally


def _exchange(sources: list[ScoreSource], version: NewVersion, tally: Tally) -> None:
    """Second pass: every row to the staged stream of its partition."""
    chunks = in_chunks(sources, CHUNK_ROWS)
    partitions = ray.put(tally.partitions)
    items = (
        (chunk, partitions, storage.join(version.staging_url, f"{number:06d}.arrows"))
        for number, chunk in enumerate(chunks)
    )
    for pieces in track(in_order(ray.remote(stage), items), "sorting rows by partition", len(chunks)):
        for piece in pieces:
            tally.pieces[piece.partition].append(piece)


def _write(version: NewVersion, tally: Tally, settings: settings.Publish) -> None:
    """One task a partition; the rows without a place are one more."""
    items = []
    for number, pieces in sorted(tally.pieces.items()):
        placed = number != UNPLACED
        path = tally.partitions[number].path if placed else ""
        url = storage.join(version.table_url, path) if placed else version.unplaced_url
        items.append((number, pieces, url, settings.duplicates == "first"))
    results = in_order(ray.remote(write_partition), items)
    for written in track(results, "writing partitions", len(items)):
        tally.rows[written.partition] = written.rows
        tally.size_bytes += written.size_bytes
        tally.repeats += written.repeats


def _check_rows(rows_in: int, tally: Tally, settings: settings.Publish) -> None:
    repeats = tally.repeats
    if repeats.rows and settings.duplicates == "fail":
        raise Failure(
            f"{repeats.rows} rows repeat the object_id of another unit, for example "
            f"{'; '.join(repeats.examples)}; nothing was published; `--duplicates first` keeps one row of each object"
        )
    rows_out = tally.placed + tally.unplaced + repeats.rows
    if rows_in != rows_out:
        raise Failure(f"rows in {rows_in} != rows out {rows_out}: a defect of DeepShadows; nothing was published")


def _finish(
    version: NewVersion,
    tally: Tally,
    runs: list[provenance.RunFacts],
    settings: settings.Publish,
    rows_in: int,
) -> None:
    """The files around the partitions, checked against what was written and by `hats`."""
    id_type = arrow_id_type(runs[0].id_type)
    if not tally.unplaced:
        storage.write(version.unplaced_url, to_parquet(score_schema(id_type).empty_table()))
    rows = {**_row_figures(runs, rows_in, tally), "duplicates": settings.duplicates}
    publish_settings = settings.model_dump(exclude={"address"})
    name = collection.table_name(version.catalog)
    kib = tally.size_bytes // 1024
    rows_read = hats_files.write_table_files(
        version.table_url,
        catalog_schema(id_type),
        [Partition(part.order, part.pixel, tally.rows[number]) for number, part in enumerate(tally.partitions)],
        tally.counts.at_order(SKYMAP_ORDER),
        provenance.properties(name, version.name, runs, publish_settings, rows, kib),
    )
    if rows_read != tally.placed:
        raise Failure(f"{version.table_url}: {rows_read} rows in the files, {tally.placed} written; nothing published")
    hats_files.check_table(version.table_url)


def _row_figures(runs: list[provenance.RunFacts], rows_in: int, tally: Tally) -> dict[str, Any]:
    named = ("planned", "scored", "unscored", "quarantined")
    return {
        **{f"rows_{name}": sum(facts.rows[name] for facts in runs) for name in named},
        "rows_in": rows_in,
        "rows_published": tally.placed,
        "rows_unplaced": tally.unplaced,
        "rows_left_out": tally.repeats.rows,
    }


def _summary(
    version: NewVersion, tally: Tally, runs: list[provenance.RunFacts], rows_in: int, seconds: float
) -> Summary:
    rows = _row_figures(runs, rows_in, tally)
    bytes_per_row = tally.size_bytes / max(1, tally.placed + tally.unplaced)
    text = [
        f"{version.catalog}: version {version.name}, {tally.placed} rows in {len(tally.partitions)} partitions "
        f"({bytes_per_row:.0f} B a row, {rows_in / seconds:.0f} rows/s)"
    ]
    if tally.unplaced:
        text.append(f"{tally.unplaced} rows have no place on the sky: {version.unplaced_url}")
    if tally.repeats.rows:
        text.append(f"{tally.repeats.rows} rows repeat an object of another unit and were left out")
    if rows["rows_quarantined"]:
        text.append(f"{rows['rows_quarantined']} rows were quarantined by classify: see quarantine/ in the runs")
    storage_options = ", storage_options={'anon': False}" if storage.is_s3(version.catalog) else ""
    text.append(f"open it:  lsdb.open_catalog({version.catalog!r}{storage_options})")
    figures = {
        **rows,
        "version": version.name,
        "table": version.table_url,
        "partitions": len(tally.partitions),
        "bytes_per_row": round(bytes_per_row, 1),
        "rows_per_s": round(rows_in / seconds, 1),
    }
    return Summary(verb="publish", output=version.catalog, figures=figures, text=tuple(text))
