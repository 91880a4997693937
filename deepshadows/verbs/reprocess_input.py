"""What `reprocess` finds: how the input looks, what of it was scored before, which run does the rest. No Ray."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepshadows import storage
from deepshadows.catalog.inventory import Inventory
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.outcomes import InputError
from deepshadows.run.units import UNIT_SCHEMA, Unit, UnitKind
from deepshadows.settings import Classify, Reprocess, Scoring
from deepshadows.sky.detections import TABLE_SUFFIXES
from deepshadows.sky.tile_headers import FITS_SUFFIXES
from deepshadows.verbs.classify_plan import Earlier

FOLDER = "reprocess"
"""CAT/reprocess: the lease, what was seen last, what the headers of tiles told, `LAST`, and the run under way."""
HEADERS = "headers"
LAST = "last"
"""CAT/reprocess/last: `quarantine/` and `rejects.parquet` of the last call, where no version came of it."""
_DOES_NOT_MATTER = {"address", "batch_size", "scorers", "threads", "retries", "threshold", "fail_on_drift"}


class Seen(BaseModel):
    """CAT/reprocess/seen.json: the input looked like this when `version` was found to be what it gives.

    `figures` are those of the whole input, see `figures_of`; empty in files of older DeepShadows.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    look: str
    version: str
    quarantined: int
    figures: dict[str, int] = Field(default_factory=dict)


def workplace(catalog: str) -> str:
    return storage.join(catalog, FOLDER)


def last_url(catalog: str) -> str:
    return storage.join(workplace(catalog), LAST)


def where_told(folder: str) -> str:
    """Where people find what could not be read."""
    return f"their records: {folder}/quarantine/, the ids of their rows: {folder}/rejects.parquet"


def look_at(settings: Reprocess, recipe: str) -> str:
    """Hash of keys, etags and sizes of the input, the recipe, and every setting that decides what a version holds.

    One listing a thousand objects and nothing else: this is all that a call costs when nothing has changed.
    """
    shown = settings.model_dump(mode="json", exclude=_DOES_NOT_MATTER)
    digest = hashlib.sha256(json.dumps([recipe, shown], sort_keys=True).encode())
    suffixes = (".parquet",) if settings.detections is None else FITS_SUFFIXES
    listed = storage.list_objects(settings.input, suffixes)
    if settings.detections is not None:
        listed += storage.list_objects(settings.detections, TABLE_SUFFIXES)
    for entry in listed:
        digest.update(f"{entry.url}\0{entry.etag}\0{entry.size_bytes}\n".encode())
    return digest.hexdigest()


def read_seen(catalog: str) -> Seen | None:
    """What was seen last; None where nothing was, or where it cannot be read: then everything is looked at again."""
    url = storage.join(workplace(catalog), "seen.json")
    if not storage.exists(url):
        return None
    try:
        return Seen.model_validate_json(storage.read(url))
    except ValidationError:
        return None


def write_seen(catalog: str, seen: Seen) -> None:
    storage.write(storage.join(workplace(catalog), "seen.json"), seen.model_dump_json().encode())


def figures_of(now: Inventory) -> dict[str, int]:
    """The JSON keys that all verbs share, over everything that the version holds."""
    return {
        **{f"rows_{name}": count for name, count in now.row_figures().items()},
        "units_planned": now.units.num_rows,
        "units_done": now.scored.num_rows,
        "units_quarantined": now.quarantined.num_rows,
    }


def drift_told(version: VersionFolder) -> tuple[str, ...]:
    """Lines about the drift that a version was made with; none where there was none, or none was looked for.

    Raises
    ------
    InputError
        Its drift.json is damaged.
    """
    if not storage.exists(version.drift_url):
        return ()
    try:
        told = json.loads(storage.read(version.drift_url))
        verdict, line = str(told["verdict"]), str(told["line"])
        before = json.loads(storage.read(version.diff_url))["version_before"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{version.drift_url}: damaged, or {version.diff_url}: {error}") from error
    return (line, *go_back(version.catalog, before)) if verdict == "drift" else ()


def go_back(catalog: str, before: str | None) -> tuple[str, ...]:
    """How to return to the version before, where there is one."""
    return (f"to go back: deepshadows versions {catalog} --rollback {before}",) if before else ()


def classify_settings(settings: Reprocess, run_url: str) -> Classify:
    """The same scoring as a run of `classify`."""
    shared = {name: getattr(settings, name) for name in Scoring.model_fields if name in settings.model_fields_set}
    return Classify(**shared, output=run_url, address=settings.address)


def run_url(catalog: str, look: str, version: str) -> str:
    """Where the units are scored that the input has and `version` lacks: the same for the same change."""
    return storage.join(workplace(catalog), hashlib.sha256(f"{look} {version}".encode()).hexdigest()[:16])


def remove_runs(catalog: str, keep: str = "") -> None:
    """Remove the runs below CAT/reprocess: they are folded into a version, or their input is no longer what it was.

    No reader needs them: versions hold all rows themselves.
    """
    entries = storage.list_objects(workplace(catalog))
    names = {storage.relative(entry.url, workplace(catalog)).split("/")[0] for entry in entries}
    for name in names - {"lease.json", "seen.json", HEADERS, storage.name_of(keep)}:
        storage.delete_folder(storage.join(workplace(catalog), name))


def scored_earlier(catalog: str, inventory: Inventory | None) -> Earlier:
    """What a plan may leave out; quarantined units are tried again each time."""
    headers = storage.join(workplace(catalog), HEADERS)
    if inventory is None:
        return Earlier(headers=headers)
    shards: dict[tuple[str, str, int], list[Unit]] = defaultdict(list)
    names = [name for name in UNIT_SCHEMA.names if name != "source"]
    of_shards = inventory.units.filter(pc.equal(inventory.units["kind"], UnitKind.SHARD.value))
    for row in of_shards.select(names).to_pylist():
        shards[row["url"], row["etag"], row["size_bytes"]].append(Unit(**row))
    units = frozenset(inventory.scored["unit"].to_pylist())
    return Earlier(units=units, shards=shards, id_type=inventory.summary.id_type, headers=headers)
