"""What an output folder of `fetch cutouts` remembers: the request it belongs to, and every try for every object.

request.json       server, survey, layer, scale, size, bands: a folder belongs to one request
requests.parquet   one row a try: parameters, status, bytes, sha256, time, and the reason where it failed
journal/*.jsonl    the same rows while a fetch runs, so that a killed one loses seconds of its memory at most
"""

from __future__ import annotations

import datetime
import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.outcomes import InputError, UsageError
from deepshadows.sky.viewer import Request

REQUEST, LOG, JOURNAL = "request.json", "requests.parquet", "journal"
_FLUSH_ROWS, _FLUSH_S = 200, 5.0
_PARAMETERS = ("ra", "dec", "layer", "zoom", "pixscale", "size", "bands")
_SCHEMA = pa.schema(
    [
        ("object_id", pa.string()),
        ("file", pa.string()),
        ("number", pa.int32()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("seconds", pa.float64()),
        ("url", pa.string()),
        *((name, pa.string()) for name in _PARAMETERS),
        ("status", pa.int32()),
        ("reason", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("unobserved", pa.float64()),
    ]
)
"""`number` counts the tries of one run for one object; `reason` is null where the answer was good, `sha256` and
`unobserved` (share of the field) where it was not."""


@dataclass
class Record:
    """The tries so far; see the module."""

    output: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    _pending: list[dict[str, Any]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Remember tries; they reach the disk within seconds, with a later call."""
        self.rows += rows
        self._pending += rows
        if len(self._pending) >= _FLUSH_ROWS or time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one object of the journal."""
        if self._pending:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            lines = [json.dumps({**row, "at": row["at"].isoformat()}) for row in self._pending]
            storage.write(storage.join(self.output, JOURNAL, name), "\n".join(lines).encode())
        self._pending = []
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the table of all tries, then drop the journal."""
        self.flush()
        storage.write_table(storage.join(self.output, LOG), pa.Table.from_pylist(self.rows, schema=_SCHEMA))
        for entry in storage.list_objects(storage.join(self.output, JOURNAL), (".jsonl",)):
            storage.delete(entry.url)

    def good(self) -> dict[str, dict[str, Any]]:
        """The last good try of each file."""
        return {row["file"]: row for row in self.rows if row["reason"] is None}


def open_record(output: str, request: Request) -> Record:
    """The record of a folder; a new one is begun where there is nothing.

    Raises
    ------
    UsageError
        The folder belongs to another request, or holds files of something else.
    """
    place = storage.join(output, REQUEST)
    wanted = asdict(request)
    if not storage.exists(place):
        if storage.list_objects(output):
            raise UsageError(f"{output}: holds files that no fetch wrote; give an empty --output")
        storage.write(place, json.dumps(wanted, indent=2).encode())
        return Record(output)
    try:
        found = json.loads(storage.read(place))
        differing = [
            f"{name} {found.get(name)!r} there, {value!r} now"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{place}: damaged; delete it with its folder and fetch anew: {error}") from error
    if differing:
        raise UsageError(
            f"{output}: holds the images of another request ({'; '.join(differing)}); give another --output"
        )
    return Record(output, rows=_read(output))


def _read(output: str) -> list[dict[str, Any]]:
    """The table, then what the journal has beyond it: a fetch killed at its end leaves the same rows in both."""
    rows: list[dict[str, Any]] = []
    log = storage.join(output, LOG)
    try:
        if storage.exists(log):
            rows += pq.read_table(storage.open_arrow(log), schema=_SCHEMA).to_pylist()
        written = {_try_of(row) for row in rows}
        for entry in storage.list_objects(storage.join(output, JOURNAL), (".jsonl",)):
            for line in storage.read(entry.url).splitlines():
                row = json.loads(line)
                row["at"] = datetime.datetime.fromisoformat(row["at"])
                if _try_of(row) not in written:
                    rows.append(row)
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{output}: the record of requests is damaged; fetch into a new folder: {error}") from error
    return rows


def _try_of(row: dict[str, Any]) -> tuple[str, int, datetime.datetime]:
    """What no two tries share."""
    return row["file"], row["number"], row["at"]
