"""RUN/units: the plan of a run as compressed Parquet parts, written and read in blocks. Imports the vocabulary only."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError
from deepshadows.run.record import RunRecord
from deepshadows.run.units import UNIT_SCHEMA, Unit

UNITS_PER_PART = 50_000
PART_SOURCE_CHARS = 32 << 20
"""A part ends here too: tiles state their bands and WCS, some 7 kB each."""
_REPEATED = ["kind", "url", "etag", "tile", "source"]


class Draft:
    """Units as they are cut, kept as compressed parts until the run's name is known: 60 bytes a unit of a shard."""

    def __init__(self, units: Iterable[Unit] = ()) -> None:
        self.rows = 0
        self._ids = bytearray()
        self._parts: list[bytes] = []
        self._open: list[Unit] = []
        self._source_chars = 0
        for unit in units:
            self.add(unit)

    def add(self, unit: Unit) -> None:
        self.rows += unit.rows
        self._ids += unit.unit.encode()
        self._open.append(unit)
        self._source_chars += len(unit.source)
        if len(self._open) >= UNITS_PER_PART or self._source_chars >= PART_SOURCE_CHARS:
            self._close_part()

    def __len__(self) -> int:
        return len(self._ids) // 32

    def __iter__(self) -> Iterator[Unit]:
        self._close_part()
        for part in self._parts:
            yield from _units(pq.read_table(io.BytesIO(part)))

    @property
    def parts(self) -> int:
        self._close_part()
        return len(self._parts)

    def ids(self) -> NDArray[np.bytes_]:
        """Unit ids in their order, 32 bytes each, shape (units,)."""
        return np.frombuffer(bytes(self._ids), dtype="S32")

    def fingerprint(self, settings: dict[str, Any], weights_sha256: str) -> str:
        """Hash of everything that decides a run's scores: settings, network, preprocessing, input inventory.

        Raises
        ------
        Failure
            Two units have one id: their scores would overwrite each other.
        """
        ids = np.sort(self.ids())
        if (ids[1:] == ids[:-1]).any():
            raise Failure("two units of the plan have one id: a defect of DeepShadows; nothing was written")
        digest = hashlib.sha256(json.dumps([settings, weights_sha256], sort_keys=True, default=str).encode())
        digest.update(ids.tobytes())
        return digest.hexdigest()

    def write(self, run: str, name: str) -> None:
        """Put the parts as RUN/units/NAME-*.parquet."""
        for number in range(self.parts):
            storage.write(_part_url(run, name, number), self._parts[number])

    def _close_part(self) -> None:
        if self._open:
            columns = [[getattr(unit, name) for unit in self._open] for name in UNIT_SCHEMA.names]
            sink = io.BytesIO()
            table = pa.table(columns, schema=UNIT_SCHEMA)
            pq.write_table(table, sink, compression="zstd", use_dictionary=_REPEATED, write_page_checksum=True)
            self._parts.append(sink.getvalue())
            self._open, self._source_chars = [], 0


class Plan:
    """The units of a run whose plan is written down, read a part at a time."""

    def __init__(self, run: str, record: RunRecord) -> None:
        self._run, self._record = run, record

    def __len__(self) -> int:
        return self._record.units_planned

    def __iter__(self) -> Iterator[Unit]:
        for block in plan_blocks(self._run, self._record):
            yield from _units(block)


def _units(block: pa.Table) -> Iterator[Unit]:
    for batch in block.to_batches(max_chunksize=1_000):
        yield from (Unit(**row) for row in batch.to_pylist())


def _part_url(run: str, name: str, number: int) -> str:
    return storage.join(run, "units", f"{name}-{number:05d}.parquet")


def plan_blocks(run: str, record: RunRecord, columns: Sequence[str] = tuple(UNIT_SCHEMA.names)) -> Iterator[pa.Table]:
    """The plan, a part at a time.

    Raises
    ------
    InputError
        A part is damaged or missing, or the parts do not hold what the record says.
    """
    wanted = pa.schema([UNIT_SCHEMA.field(name) for name in columns])
    units = 0
    for number in range(record.plan_parts):
        url = _part_url(run, record.run, number)
        part = io.BytesIO(storage.read(url))  # some 1 MB: whole, by the client that repeats what a busy store refuses
        try:
            table = pq.read_table(part, columns=wanted.names, page_checksum_verification=True)
            table = table.select(wanted.names).cast(wanted)
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise storage.arrow_failure(url, error) from error
        if any(column.null_count for column in table.columns):
            raise InputError(f"{url}: damaged plan: values are missing; classify again into a new run")
        units += table.num_rows
        yield table
    if units != record.units_planned:
        raise InputError(
            f"{run}: {units} units in units/, run.json says {record.units_planned}; classify again into a new run"
        )


def unit_ids(block: pa.Table) -> NDArray[np.bytes_]:
    """The ids of a block of units or score objects, 32 bytes each, shape (N,)."""
    return np.asarray(block["unit"].to_numpy(zero_copy_only=False), dtype="S32")
