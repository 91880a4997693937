"""RUN/run.json: what a run is -- settings, fingerprint, versions -- written before work begins. Vocabulary only."""

from __future__ import annotations

import importlib.metadata
import platform
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepshadows import __version__, storage
from deepshadows.outcomes import InputError, StorageError, UsageError

FORMAT_VERSION = 2
KNOWN_ENTRIES = (
    "run.json",
    "manifest.json",
    "manifest",
    "units",
    "scores",
    "journal",
    "quarantine",
    "rejects.parquet",
    "lease.json",
    "detections",
    "tiles",
)


class RunRecord(BaseModel):
    """The record of a run; a run directory belongs to exactly one fingerprint.

    Attributes
    ----------
    inventory : str
        Hash of the settings and of the listing of the input: where it is the same, so is the plan.
    plan_parts : int
        Objects of the plan, RUN/units/<run>-00000.parquet and on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    run: str
    fingerprint: str
    recipe: str = Field("", description="The fingerprint without the input: what a unit's scores depend on beside it.")
    inventory: str
    plan_parts: int
    settings: dict[str, Any]
    checkpoint: dict[str, Any]
    preprocessing: dict[str, Any]
    id_type: str
    units_planned: int
    rows_planned: int
    versions: dict[str, str]


def software_versions() -> dict[str, str]:
    """Versions of what decides pixels and scores."""
    names = ("ray", "torch", "numpy", "pyarrow", "astropy")
    return {
        "deepshadows": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def read_record(run: str) -> RunRecord | None:
    """The record of a run directory, None where none is yet."""
    url = storage.join(run, "run.json")
    if not storage.exists(url):
        return None
    try:
        return RunRecord.model_validate_json(storage.read(url))
    except ValidationError as error:
        raise InputError(f"{url}: not a run record of this version of DeepShadows: {error}") from error


def check_owner(record: RunRecord, run: str) -> RunRecord | None:
    """The directory's own record where it is this run's already, None where it is nobody's.

    Raises
    ------
    UsageError
        The directory belongs to another run.
    """
    existing = read_record(run)
    if existing is not None and existing.fingerprint != record.fingerprint:
        raise UsageError(f"{run}: belongs to another run (other input, settings or weights); give another --output")
    return existing


def claim_directory(record: RunRecord, run: str) -> RunRecord:
    """Write the record, or find one there: the one that holds; another run's is a `UsageError`."""
    storage.create(storage.join(run, "run.json"), record.model_dump_json(indent=1).encode())
    return check_owner(record, run) or record


def check_directory(run: str) -> None:
    """Refuse a directory that holds something else."""
    names = (name.rstrip("/") for name in storage.children(run))
    foreign = [name for name in names if name not in KNOWN_ENTRIES and not name.startswith((".", "_"))]
    if foreign:
        raise UsageError(f"{run}: not a run directory (it holds {foreign[0]}); give another --output")


def check_fencing(run: str) -> None:
    """Refuse a store that does not honour If-None-Match: it could not tell two drivers apart."""
    canary = storage.join(run, f".canary-{uuid.uuid4().hex}")
    storage.create(canary, b"1")
    if storage.create(canary, b"2"):
        raise StorageError(f"{run}: this store ignores If-None-Match, so two drivers could both commit; use another")
    storage.delete(canary)
