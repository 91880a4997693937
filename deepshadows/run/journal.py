"""RUN/journal: receipts of committed units, so that a driver that goes on need not open each score object.

A hint, not a record: an entry counts only for the score object that the store lists with the same etag and size.
Vocabulary only.
"""

from __future__ import annotations

import contextlib
import io
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.outcomes import StorageError
from deepshadows.run.scores import Receipt

RECEIPTS_PER_PART = 5_000
"""What a killed driver has not written yet, and its successor reads from footers: seconds of work."""
_FINGERPRINT = b"deepshadows.fingerprint"
_SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("rows", pa.int64()),
        ("scored", pa.int64()),
        ("flag_counts", pa.string()),
        ("engine", pa.string()),
    ]
)


class Journal:
    """Writes receipts while the block runs, a part whenever enough have come, and the rest at its end.

    Parameters
    ----------
    run, fingerprint : str
        Where, and whose.
    driver : str
        Names the parts, so that no two drivers write the same.
    """

    def __init__(self, run: str, fingerprint: str, driver: str) -> None:
        self._folder = storage.join(run, "journal")
        self._fingerprint, self._driver = fingerprint, driver
        self._waiting: list[Receipt] = []
        self._parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(StorageError):  # what is not written is read from footers
            self._flush()

    def add(self, receipt: Receipt) -> None:
        if not receipt.quarantined:
            self._waiting.append(receipt)
        if len(self._waiting) >= RECEIPTS_PER_PART:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = [[getattr(receipt, name) for receipt in self._waiting] for name in _SCHEMA.names]
        table = pa.table(columns, schema=_SCHEMA.with_metadata({_FINGERPRINT: self._fingerprint.encode()}))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        storage.write(storage.join(self._folder, f"{self._driver}-{self._parts:05d}.parquet"), sink.getvalue())
        self._parts, self._waiting = self._parts + 1, []


def known_receipts(run: str, fingerprint: str, listing: pa.Table) -> pa.Table:
    """Receipts of listed score objects, one row each of those that the journal knows: `unit` and the figures.

    Parameters
    ----------
    listing : pa.Table
        Score objects that are there: `scores.LISTING_SCHEMA`.
    """
    parts = [_SCHEMA.empty_table()]
    for entry in storage.list_objects(storage.join(run, "journal"), (".parquet",)):
        try:
            part = pq.read_table(io.BytesIO(storage.read(entry.url)), page_checksum_verification=True)
            part.validate(full=True)
        except storage.ARROW_ERRORS as error:
            raise storage.arrow_failure(entry.url, error) from error
        if part.schema.equals(_SCHEMA) and (part.schema.metadata or {}).get(_FINGERPRINT, b"") == fingerprint.encode():
            parts.append(part.replace_schema_metadata(None))
    journal = pa.concat_tables(parts)
    if not journal.num_rows:
        return journal
    place = pc.index_in(listing["unit"], value_set=journal["unit"])
    entries = journal.take(place.fill_null(0))
    same = pc.and_(pc.equal(entries["etag"], listing["etag"]), pc.equal(entries["size_bytes"], listing["size_bytes"]))
    return entries.filter(pc.and_(same, pc.is_valid(place)))
