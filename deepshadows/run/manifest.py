"""RUN/manifest.json: the commit of a run. Readers of scores go only through it. Vocabulary only.

It holds the totals and names the parts, RUN/manifest/*.parquet, that list the score objects and the quarantined units.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deepshadows import storage
from deepshadows.outcomes import InputError, UsageError

FORMAT_VERSION = 2
ENTRIES_PER_PART = 50_000
"""Some 5 MB of score objects, and never 64: an entry of theirs has less than 300 bytes, a reason is cut at 1000."""
MOST_REASON_CHARS = 1000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class ScoreObject:
    """One committed score object; `url` is relative to the run."""

    url: str
    size_bytes: int
    etag: str
    rows: int


@dataclass(frozen=True, slots=True)
class QuarantinedUnit:
    """One unit that could not be read, and `object`, what it is called."""

    unit: str
    object: str
    rows: int
    reason: str


_SCORES = pa.schema([("url", pa.string()), ("size_bytes", pa.int64()), ("etag", pa.string()), ("rows", pa.int64())])
_QUARANTINED = pa.schema(
    [("unit", pa.string()), ("object", pa.string()), ("rows", pa.int64()), ("reason", pa.string())]
)
Entry = TypeVar("Entry", ScoreObject, QuarantinedUnit)


class ManifestPart(_Frozen):
    """One object that lists score objects or quarantined units; `url` is relative to the run."""

    url: str
    sha256: str
    size_bytes: int
    entries: int = Field(ge=0)
    rows: int = Field(ge=0)


class Manifest(_Frozen):
    """What a finished run holds; rows planned = scored + unscored + quarantined, or it cannot be built."""

    format_version: int = FORMAT_VERSION
    run: str
    fingerprint: str
    recipe: str = ""
    driver: str
    settings: dict[str, Any]
    checkpoint: dict[str, Any]
    preprocessing: dict[str, Any]
    engine: str
    versions: dict[str, str]
    id_type: str
    units_planned: int
    units_done: int
    units_quarantined: int
    rows_planned: int
    rows_scored: int
    rows_unscored: int
    rows_quarantined: int
    flag_counts: dict[str, int]
    seconds: float
    score_parts: tuple[ManifestPart, ...]
    quarantine_parts: tuple[ManifestPart, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if self.rows_planned != self.rows_scored + self.rows_unscored + self.rows_quarantined:
            raise ValueError(
                f"rows planned {self.rows_planned} != scored {self.rows_scored} + unscored {self.rows_unscored} "
                f"+ quarantined {self.rows_quarantined}"
            )
        if self.units_planned != self.units_done + self.units_quarantined:
            raise ValueError("units planned != done + quarantined")
        if _sums(self.score_parts) != (self.units_done, self.rows_scored + self.rows_unscored):
            raise ValueError("units or rows of the score objects do not add up to done, scored + unscored")
        if _sums(self.quarantine_parts) != (self.units_quarantined, self.rows_quarantined):
            raise ValueError("units or rows of the quarantined units do not add up")
        return self


def _sums(parts: tuple[ManifestPart, ...]) -> tuple[int, int]:
    return sum(part.entries for part in parts), sum(part.rows for part in parts)


def manifest_url(run: str) -> str:
    return storage.join(run, "manifest.json")


def read_manifest(run: str) -> Manifest:
    """The manifest of a finished run: totals and the names of its parts.

    Raises
    ------
    UsageError
        The run is not finished, or there is none.
    InputError
        The manifest is damaged or of another version.
    """
    url = manifest_url(run)
    if not storage.exists(url):
        raise UsageError(f"{run}: no finished run there (no manifest.json); run `deepshadows classify` to its end")
    try:
        return Manifest.model_validate_json(storage.read(url))
    except ValidationError as error:
        raise InputError(f"{url}: not a manifest of this version of DeepShadows: {error}") from error


def write_score_parts(run: str, driver: str, scores: Iterable[ScoreObject]) -> tuple[ManifestPart, ...]:
    """Put the list of score objects; nothing refers to it before the manifest does."""
    return tuple(_write_parts(run, f"{driver}-scores", scores, _SCORES))


def write_quarantine_parts(run: str, driver: str, units: Iterable[QuarantinedUnit]) -> tuple[ManifestPart, ...]:
    """Put the list of quarantined units; nothing refers to it before the manifest does."""
    return tuple(_write_parts(run, f"{driver}-quarantined", units, _QUARANTINED))


def score_objects(run: str, manifest: Manifest) -> Iterator[list[ScoreObject]]:
    """The score objects of a finished run, sorted by unit, a part at a time.

    Raises
    ------
    InputError
        A part is not the one that the run committed.
    """
    for part in manifest.score_parts:
        yield _read_part(run, part, _SCORES, ScoreObject)


def quarantined_units(run: str, manifest: Manifest) -> Iterator[QuarantinedUnit]:
    """The quarantined units of a finished run, sorted."""
    for part in manifest.quarantine_parts:
        yield from _read_part(run, part, _QUARANTINED, QuarantinedUnit)


def _write_parts(run: str, name: str, entries: Iterable[Entry], schema: pa.Schema) -> Iterator[ManifestPart]:
    remaining = iter(entries)
    for number in itertools.count():
        if not (some := list(itertools.islice(remaining, ENTRIES_PER_PART))):
            return
        columns = zip(*(astuple(entry) for entry in some), strict=True)
        sink = io.BytesIO()
        pq.write_table(pa.table([list(column) for column in columns], schema=schema), sink, compression="zstd")
        data = sink.getvalue()
        url = f"manifest/{name}-{number:05d}.parquet"
        storage.write(storage.join(run, url), data)
        yield ManifestPart(
            url=url,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            entries=len(some),
            rows=sum(entry.rows for entry in some),
        )


def _read_part(run: str, part: ManifestPart, schema: pa.Schema, kind: type[Entry]) -> list[Entry]:
    url = storage.join(run, part.url)
    if not part.url.startswith("manifest/") or ".." in part.url.split("/"):
        raise InputError(f"{run}: its manifest names a part outside the run: {part.url}")
    data = storage.read(url)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise InputError(f"{url}: not the object that the run committed; classify again into a new run")
    try:
        columns = pq.read_table(io.BytesIO(data)).cast(schema).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise storage.arrow_failure(url, error) from error
    return [kind(*values) for values in zip(*(columns[name] for name in schema.names), strict=True)]
