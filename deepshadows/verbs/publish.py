"""`deepshadows publish`: finished runs become a new version of a HATS catalogue.

Two passes over the score objects, as Ray tasks: count rows by pixel, then hand every row to its partition. The driver
holds counts and addresses, never rows; a task holds one chunk or one partition.
"""

from __future__ import annotations

import json
import time
from itertools import chain

from deepshadows import settings, storage
from deepshadows.catalog import collection, hats_files, inventory, provenance
from deepshadows.catalog.collection import NewVersion
from deepshadows.catalog.score_objects import arrow_id_type
from deepshadows.catalog.version_folder import table_name
from deepshadows.outcomes import InputError, Summary
from deepshadows.run.manifest import Manifest, quarantined_units, read_manifest, score_objects
from deepshadows.verbs.comparison import compare_versions
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.score_sources import sources_of
from deepshadows.verbs.stock import stock_of_run, stock_of_runs
from deepshadows.verbs.version_plan import VersionPlan, plan_version
from deepshadows.verbs.version_writing import Tally, new_version, write_files, write_version

THRESHOLD = 0.5
"""p_lsbg across which objects change side in diff.json: a run does not carry the threshold of its network's card."""


def run(settings: settings.Publish) -> Summary:
    """Publish finished runs; the catalogue changes at the very end, by one conditional write."""
    started = time.monotonic()
    catalog = storage.normalise(settings.catalog)
    urls = [storage.normalise(url) for url in settings.run]
    manifests = [read_manifest(url) for url in urls]
    runs = [_facts(url, manifest) for url, manifest in zip(urls, manifests, strict=True)]
    provenance.check_runs(runs)
    sources = [source for url, manifest in zip(urls, manifests, strict=True) for source in sources_of(url, manifest)]
    rows_in = sum(source.rows for source in sources)
    if rows_in == 0:
        raise InputError(f"{', '.join(urls)}: nothing to publish, the runs hold no rows; {catalog} is unchanged")
    collection.check_store(catalog)
    id_type = arrow_id_type(runs[0].id_type)
    with ray_session(settings.address), new_version(catalog) as version:
        plan = plan_version(sources, id_type, settings.partition_rows, settings.margin_arcsec)
        tally = write_version(version, plan, keep_first=settings.duplicates == "first")
        rows = _row_figures(runs, rows_in, tally)
        told = {**rows, "duplicates": settings.duplicates}
        asked = settings.model_dump(exclude={"address"})
        described = provenance.properties(table_name(catalog), version.name, runs, asked, told)
        _write_stock(version, urls, manifests, tally)
        _write_diff(version, plan, tally)
        write_files(version, plan, tally, described)
        hats_files.check_version(version)
    collection.swap(version)  # out of reach of what removes an unfinished version: it may be the current one now
    return _summary(version, tally, rows, time.monotonic() - started)


def _write_stock(version: NewVersion, runs: list[str], manifests: list[Manifest], tally: Tally) -> None:
    """The inventory that `reprocess` goes on from.

    It cannot where repeats were left out by the order of several runs: its own order is that of the units.
    """
    stock = stock_of_runs([stock_of_run(run, manifest) for run, manifest in zip(runs, manifests, strict=True)])
    if stock is not None and not (len(runs) > 1 and tally.left_out):
        inventory.write(version.url, stock)


def _write_diff(version: NewVersion, plan: VersionPlan, tally: Tally) -> None:
    """What changed since the version before, where there is one."""
    if version.before is None:
        return
    changes = compare_versions(version, plan, tally, THRESHOLD)
    told = {"version": version.name, "version_before": version.before.version, "threshold": THRESHOLD}
    storage.write(version.diff_url, json.dumps({**told, "objects": changes.to_json()}, indent=1).encode())


def _facts(url: str, manifest: Manifest) -> provenance.RunFacts:
    rows = {name: getattr(manifest, f"rows_{name}") for name in ("planned", "scored", "unscored", "quarantined")}
    scores = chain.from_iterable(score_objects(url, manifest))
    units = (storage.name_of(score.url).removesuffix(".parquet") for score in scores)
    content = provenance.inventory_of(chain(units, (bad.unit for bad in quarantined_units(url, manifest))))
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
        inventory=content,
    )


def _row_figures(runs: list[provenance.RunFacts], rows_in: int, tally: Tally) -> dict[str, int]:
    named = ("planned", "scored", "unscored", "quarantined")
    return {
        **{f"rows_{name}": sum(facts.rows[name] for facts in runs) for name in named},
        "rows_in": rows_in,
        "rows_published": tally.placed,
        "rows_unplaced": tally.unplaced,
        "rows_left_out": tally.repeats.rows,
    }


def _summary(version: NewVersion, tally: Tally, rows: dict[str, int], seconds: float) -> Summary:
    rows_out = tally.placed + tally.unplaced
    bytes_per_row = {kind: size / max(1, rows_out) for kind, size in tally.size_bytes.items()}
    text = [
        f"{version.catalog}: version {version.name}, {tally.placed} rows in {len(tally.partitions)} partitions "
        f"({sum(bytes_per_row.values()):.0f} B a row with margin and index, {rows['rows_in'] / seconds:.0f} rows/s)"
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
        "bytes_per_row": round(bytes_per_row["table"], 1),
        "margin_bytes_per_row": round(bytes_per_row["margin"], 1),
        "index_bytes_per_row": round(bytes_per_row["index"], 1),
        "rows_per_s": round(rows["rows_in"] / seconds, 1),
    }
    return Summary(verb="publish", output=version.catalog, figures=figures, text=tuple(text))
