"""What is reported: a run, finished or not, or a version of a catalogue, with all that is known but its rows.

Rows come part by part. No Ray, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deepshadows import storage
from deepshadows.catalog import versions
from deepshadows.catalog.collection import read_pointer, read_properties
from deepshadows.catalog.inventory import Inventory
from deepshadows.catalog.inventory import read as read_inventory
from deepshadows.catalog.score_objects import arrow_id_type
from deepshadows.catalog.version_folder import VERSION_NAME, VersionFolder
from deepshadows.outcomes import Failure, InputError, StorageError, UsageError
from deepshadows.run.manifest import QuarantinedUnit, manifest_url, read_manifest
from deepshadows.run.record import RunRecord, read_record
from deepshadows.run.units import UNIT_SCHEMA, Unit
from deepshadows.schema import score_schema
from deepshadows.verbs.review.images import Find
from deepshadows.verbs.review.run_parts import (
    MOST_QUARANTINED,
    ROWS,
    RunPart,
    of_manifest,
    of_store,
    units_named,
)
from deepshadows.verbs.review.tables import Table, score_tables
from deepshadows.verbs.score_sources import sources_of

_OF_UNIT = [name for name in UNIT_SCHEMA.names if name != "source"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a report is about.

    Attributes
    ----------
    rows : dict
        Counts by name, in the order of the balance: planned first, then the parts that add up to it.
    rows_there, left_out : int
        Rows that `tables` must give, and rows of the runs that repeat others and are not in the catalogue.
    runs : tuple of RunPart
        Those whose manifest or record can be read.
    missing_runs : dict
        Address and reason of the others.
    preprocessing : dict
        Field, bands and stretch of the images.
    find : callable
        Work units by run and name.
    quarantined : tuple of QuarantinedUnit
        The first of them.
    tables : callable
        Gives the rows, part by part, all columns of a score table.
    diff, drift : dict or None
        What `reprocess` wrote beside a version: how it differs from the one before, and whether the sky has drifted.
    """

    title: str
    url: str
    rows: Mapping[str, int]
    rows_there: int
    left_out: int = 0
    runs: tuple[RunPart, ...]
    missing_runs: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    find: Find
    quarantined: tuple[QuarantinedUnit, ...]
    tables: Callable[[], Iterator[pa.Table]]
    parts: int
    size_bytes: int
    diff: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None

    @property
    def unfinished(self) -> RunPart | None:
        return next((run for run in self.runs if not run.is_finished), None)


def open_source(url: str) -> Source:
    """A run, a catalogue (its current version), or one version of a catalogue.

    Raises
    ------
    UsageError
        It is none of these.
    InputError
        It is damaged, or written by another version of DeepShadows.
    """
    url = storage.normalise(url)
    record = read_record(url)
    if record is not None or storage.exists(manifest_url(url)):
        return _open_run(url, record)
    root, _, name = url.rpartition("/")
    if VERSION_NAME.fullmatch(name) and read_pointer(root) is not None:
        return _open_version(versions.find(root, name))
    if read_pointer(url) is not None:
        return _open_version(versions.find(url, None))
    raise UsageError(
        f"{url}: neither a run (no run.json) nor a catalogue (no collection.properties); "
        "give the --output of `deepshadows classify` or the --catalog of `deepshadows publish`"
    )


def _open_run(url: str, record: RunRecord | None) -> Source:
    if storage.exists(manifest_url(url)):
        manifest = read_manifest(url)
        part, scores, id_type = of_manifest(url, manifest), list(sources_of(url, manifest)), manifest.id_type
    else:
        assert record is not None
        part, scores = of_store(url, record)
        id_type = record.id_type
    empty = score_schema(arrow_id_type(id_type)).empty_table()

    def tables() -> Iterator[pa.Table]:
        yield empty
        yield from score_tables(scores)

    return Source(
        title=f"Run {part.run}",
        url=url,
        rows=part.rows,
        rows_there=part.rows["scored"] + part.rows["unscored"],
        runs=(part,),
        provenance={"fingerprint": part.fingerprint},
        preprocessing=part.preprocessing,
        find=_finder([part], None),
        quarantined=part.quarantined,
        tables=tables,
        parts=len(scores) + 1,
        size_bytes=sum(score.size_bytes for score in scores),
    )


def _open_version(version: VersionFolder) -> Source:
    table = Table(version)
    known = _properties(version.table_url)
    told, inventory = known["deepshadows_rows"], read_inventory(version.url)
    runs, missing = _runs([(str(run["url"]), str(run["run"])) for run in known["deepshadows_runs"]])
    columns = score_schema(pa.int64()).names

    def tables() -> Iterator[pa.Table]:
        yield from table.rows(table.partitions, columns)
        yield from table.unplaced(columns)

    files = storage.list_objects(storage.join(version.table_url, "dataset"), (".parquet",))
    return Source(
        title=f"Catalogue {storage.name_of(version.table)}, version {version.name}",
        url=version.url,
        rows={name: told[f"rows_{name}"] for name in ROWS},
        left_out=told.get("rows_left_out", 0),
        rows_there=table.count(),
        runs=tuple(runs),
        missing_runs=missing,
        preprocessing=known["deepshadows_preprocessing"],
        find=_finder(runs, inventory),
        quarantined=_quarantined(runs, inventory),
        provenance={
            name.removeprefix("deepshadows_").replace("_", " "): value if isinstance(value, str) else json.dumps(value)
            for name, value in known.items()
            if name not in ("deepshadows_rows", "deepshadows_runs")
        },
        tables=tables,
        diff=_beside(version.diff_url),
        drift=_beside(version.drift_url),
        parts=len(table.partitions) + 1,
        size_bytes=sum(file.size_bytes for file in files),
    )


def _finder(runs: Sequence[RunPart], inventory: Inventory | None) -> Find:
    """Units from the plans of runs that are still there, else from a version's inventory."""
    known = {run.run: run.url for run in runs}

    def find(run: str, names: Sequence[str]) -> Mapping[str, Unit]:
        if run in known:
            return units_named(known[run], names)
        if inventory is None:
            raise InputError(f"run {run} is gone")
        rows = inventory.units.filter(pc.is_in(inventory.units["unit"], pa.array(names)))
        return {row["unit"]: Unit(**row) for row in rows.select(_OF_UNIT).to_pylist()}

    return find


def _quarantined(runs: Sequence[RunPart], inventory: Inventory | None) -> tuple[QuarantinedUnit, ...]:
    if inventory is None:
        return tuple(unit for run in runs for unit in run.quarantined)
    rows = inventory.quarantined.slice(0, MOST_QUARANTINED).to_pylist()
    return tuple(
        QuarantinedUnit(row["unit"], f"tile {row['tile']}" if row["tile"] else row["url"], row["rows"], row["reason"])
        for row in rows
    )


def _beside(url: str) -> dict[str, Any] | None:
    """A JSON object of the version's folder, None where there is none."""
    if not storage.exists(url):
        return None
    try:
        return dict(json.loads(storage.read(url)))
    except (ValueError, TypeError) as error:
        raise InputError(f"{url}: damaged: {error}") from error


def _properties(table_url: str) -> dict[str, Any]:
    """What `publish` wrote of the catalogue's origin, JSON taken apart."""
    extra = read_properties(table_url).model_extra or {}
    found = {name: _parsed(value) for name, value in extra.items() if name.startswith("deepshadows_")}
    if not {"deepshadows_rows", "deepshadows_runs", "deepshadows_preprocessing"} <= set(found):
        raise InputError(
            f"{table_url}: its properties do not say what DeepShadows writes; publish it with this version"
        )
    return found


def _parsed(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _runs(named: Sequence[tuple[str, str]]) -> tuple[list[RunPart], dict[str, str]]:
    """The runs of a catalogue that are still there and are still the same, and why the others are not."""
    runs, missing = [], {}
    for url, run in named:
        try:
            part = of_manifest(url, read_manifest(url))
        except (UsageError, InputError, StorageError) as error:
            missing[url] = str(error)
            continue
        if part.run == run:
            runs.append(part)
        else:
            missing[url] = f"{url}: now holds run {part.run}, not {run}"
    return runs, missing


def check_complete(source: Source, rows: int) -> None:
    """A `Failure` where the rows are not as many as the manifest or the catalogue says."""
    if rows != source.rows_there:
        raise Failure(f"{source.url}: {rows} rows in its files, {source.rows_there} by its record; it is damaged")
