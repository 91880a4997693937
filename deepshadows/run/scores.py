"""Score objects: one Parquet a unit, built in memory and put once. Vocabulary only."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.run.units import Unit
from deepshadows.schema import count_flags, is_fatal, score_schema

_FOOTER_THREADS = 16
_LISTED_AT_ONCE = 50_000
_SCORE_NAME = re.compile(r"scores/([0-9a-f]{2})/\1[0-9a-f]{30}\.parquet")
STATISTICS_KEY = b"deepshadows.statistics"
"""Of the metadata of a unit's table: see `catalog.statistics`."""
LISTING_SCHEMA = pa.schema(
    [("unit", pa.string()), ("size_bytes", pa.int64()), ("etag", pa.string()), ("modified_s", pa.float64())]
)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of one unit; size and etag are those of its score object."""

    unit: str
    rows: int
    scored: int
    quarantined: bool = False
    reason: str = ""
    flag_counts: str = "{}"
    engine: str = ""
    statistics: str = "{}"
    """JSON of `STATISTICS_KEY`."""
    size_bytes: int = 0
    etag: str = ""


def score_url(run: str, unit: str) -> str:
    return storage.join(run, "scores", unit[:2], f"{unit}.parquet")


def score_table(
    object_id: pa.Array,
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    logit: NDArray[np.float32],
    p_lsbg: NDArray[np.float32],
    flags: NDArray[np.int32],
    *,
    unit: str,
    run: str,
    p_lsbg_err: NDArray[np.float32],
) -> pa.Table:
    """Rows of one unit; score columns are null where a fatal flag is set, positions and errors where they are NaN."""
    fatal = is_fatal(flags)
    count = len(flags)
    columns = [
        object_id,
        pa.array(ra, mask=np.isnan(ra)),
        pa.array(dec, mask=np.isnan(dec)),
        pa.array(logit, mask=fatal),
        pa.array(p_lsbg, mask=fatal),
        pa.array(p_lsbg_err, mask=fatal | np.isnan(p_lsbg_err)),
        pa.array(flags),
        pa.array([unit] * count, pa.string()),
        pa.array([run] * count, pa.string()),
    ]
    return pa.table(columns, schema=score_schema(object_id.type))


def first_occurrences(object_id: pa.Array) -> NDArray[np.bool_]:
    """True for the first row of each identifier."""
    values = object_id.to_numpy(zero_copy_only=False)
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def commit(run: str, unit: Unit, table: pa.Table, fingerprint: str, engine: str) -> Receipt:
    """Put the score object of a unit; one that was there already stays, and the receipt is that of what is there.

    The footer carries unit, fingerprint, rows and scored rows, so a listing can be checked without reading rows.
    """
    if table.num_rows != unit.rows:
        raise InputError(f"{unit.name}: {table.num_rows} rows scored, {unit.rows} planned")
    scored = table.num_rows - table["p_lsbg"].null_count
    flag_counts = json.dumps(count_flags(table["flags"].to_numpy()))
    statistics = (table.schema.metadata or {}).get(STATISTICS_KEY, b"{}")
    footer = {
        STATISTICS_KEY: statistics,
        b"deepshadows.unit": unit.unit.encode(),
        b"deepshadows.fingerprint": fingerprint.encode(),
        b"deepshadows.rows": str(table.num_rows).encode(),
        b"deepshadows.scored": str(scored).encode(),
        b"deepshadows.flags": flag_counts.encode(),
        b"deepshadows.engine": engine.encode(),
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), sink, compression="zstd", use_dictionary=["unit", "run"])
    url = score_url(run, unit.unit)
    etag = storage.create_etag(url, sink.getvalue())
    if etag is None:
        stored = storage.stat(url)
        there = _footer_receipt(run, unit.unit, fingerprint)
        return replace(there, size_bytes=stored.size_bytes, etag=stored.etag)
    return Receipt(
        unit=unit.unit,
        rows=table.num_rows,
        scored=scored,
        flag_counts=flag_counts,
        engine=engine,
        statistics=statistics.decode(),
        size_bytes=sink.tell(),
        etag=etag,
    )


def committed(run: str) -> pa.Table:
    """Score objects that are there, one row each of `LISTING_SCHEMA`, sorted by unit: some 100 bytes an object."""
    listed = storage.iter_objects(storage.join(run, "scores"), (".parquet",))
    found = (entry for entry in listed if _SCORE_NAME.fullmatch(storage.relative(entry.url, run)))
    batches = []
    while page := list(itertools.islice(found, _LISTED_AT_ONCE)):
        units = [storage.name_of(entry.url).removesuffix(".parquet") for entry in page]
        columns = [[getattr(entry, name) for entry in page] for name in LISTING_SCHEMA.names[1:]]
        batches.append(pa.table([units, *columns], schema=LISTING_SCHEMA))
    return pa.concat_tables([LISTING_SCHEMA.empty_table(), *batches]).sort_by("unit")


def read_receipts(run: str, units: Iterable[str], fingerprint: str) -> Iterator[Receipt]:
    """Receipts of units that an earlier driver committed, from the footers of their score objects.

    Raises
    ------
    InputError
        An object is damaged or belongs to another run.
    """
    remaining = iter(units)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        while some := list(itertools.islice(remaining, _LISTED_AT_ONCE)):
            yield from pool.map(lambda unit: _footer_receipt(run, unit, fingerprint), some)


def _footer_receipt(run: str, unit: str, fingerprint: str) -> Receipt:
    url = score_url(run, unit)
    try:
        with storage.open_arrow(url) as file:
            footer = pq.read_schema(file).metadata or {}
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(url, error) from error
    if footer.get(b"deepshadows.fingerprint") != fingerprint.encode():
        raise InputError(f"{url}: belongs to another run; give another --output")
    if footer.get(b"deepshadows.unit") != unit.encode():
        raise InputError(f"{url}: holds another unit than its name says; delete it and run classify again")
    try:
        return Receipt(
            unit=unit,
            rows=int(footer[b"deepshadows.rows"]),
            scored=int(footer[b"deepshadows.scored"]),
            flag_counts=json.dumps({name: int(n) for name, n in json.loads(footer[b"deepshadows.flags"]).items()}),
            engine=footer[b"deepshadows.engine"].decode(),
            statistics=footer.get(STATISTICS_KEY, b"{}").decode(),
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{url}: damaged footer; delete this object and run classify again") from error


def _quarantine_url(run: str, unit: str) -> str:
    return storage.join(run, "quarantine", f"{unit}.json")


def quarantined(run: str) -> dict[str, str]:
    """Addresses of the records of units that could not be read, by unit."""
    found = storage.list_objects(storage.join(run, "quarantine"), (".json",))
    return {storage.name_of(entry.url).removesuffix(".json"): entry.url for entry in found}


def forget_quarantine(run: str, units: Container[str]) -> None:
    """Delete the records of all units but these: others were read after all, by a later driver."""
    for unit, url in quarantined(run).items():
        if unit not in units:
            storage.delete(url)


def quarantine(run: str, unit: Unit, reason: str) -> Receipt:
    """Record why a unit could not be read: RUN/quarantine/<unit>.json."""
    record = {
        "unit": unit.unit,
        "kind": unit.kind,
        "object": unit.url,
        "tile": unit.tile,
        "first_row": unit.first_row,
        "rows": unit.rows,
        "reason": reason,
    }
    storage.write(_quarantine_url(run, unit.unit), json.dumps(record, indent=1).encode())
    return Receipt(unit=unit.unit, rows=unit.rows, scored=0, quarantined=True, reason=reason)
