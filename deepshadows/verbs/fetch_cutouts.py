"""`fetch cutouts`: an image of each object from the viewer, or the reason why there is none. Threads, no Ray.

images/<object_id>.jpg|fits   as the server sent them
shards/*.parquet              the same, ready for `train`, `evaluate` and `classify`
positions.parquet             the objects that have an image
failed.parquet                the others, with the reason
requests.parquet              every try (see `fetch_record`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from deepshadows import storage
from deepshadows.outcomes import ExitCode, Summary
from deepshadows.settings import Fetch
from deepshadows.sky.viewer import BlankError, Request, inspect, request_of, safe_name
from deepshadows.verbs.fetch_objects import Objects, read_objects
from deepshadows.verbs.fetch_record import Record, open_record
from deepshadows.verbs.fetch_shards import write_shards
from deepshadows.verbs.polite_http import FinalError, PoliteClient, address
from deepshadows.verbs.progress import track

IMAGES, POSITIONS, FAILED = "images", "positions.parquet", "failed.parquet"
_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """One object to ask for."""

    row: int
    object_id: str
    file: str
    ra: float
    dec: float


def fetch_cutouts(settings: Fetch, client: PoliteClient) -> Summary:
    """Fetch what is missing, then write the tables and shards of all that is there."""
    request = request_of(settings)
    objects = read_objects(settings)
    output = storage.normalise(settings.output)
    record = open_record(output, request)
    wanted, present = _plan(objects, request, record)
    reasons = dict(objects.reasons)
    asking = _ask_all(wanted, request, record, client, settings.threads)
    try:
        ends = track(asking, "fetching images", len(wanted))
        reasons.update((row, reason) for row, reason in ends if reason is not None)
    finally:
        asking.close()
        record.close()
    good = record.good()
    have = [row for row in range(len(objects)) if row not in reasons]
    _write_tables(output, objects, have, reasons, request)
    shards = write_shards(output, objects, _files(objects, have, request), have, good, request, settings.shard_rows)
    return _summary(output, objects, present, reasons, request, shards)


def _files(objects: Objects, rows: Sequence[int], request: Request) -> list[str]:
    """Names of the images of some rows, below the output folder."""
    return [f"{IMAGES}/{safe_name(objects.object_id[row].as_py())}{request.suffix}" for row in rows]


def _plan(objects: Objects, request: Request, record: Record) -> tuple[list[_Wanted], int]:
    """What is to be asked for, and how many images are there already; images of other positions are dropped."""
    good = record.good()
    stored = {
        storage.relative(entry.url, record.output): entry.size_bytes
        for entry in storage.list_objects(storage.join(record.output, IMAGES))
    }
    wanted = []
    rows = [row for row in range(len(objects)) if row not in objects.reasons]
    for row, file in zip(rows, _files(objects, rows, request), strict=True):
        ra, dec = float(objects.ra[row]), float(objects.dec[row])
        last = good.get(file)
        same = last is not None and last["url"] == address(request.address, request.parameters(ra, dec))
        if same and last is not None and stored.get(file) == last["bytes"]:
            continue
        if file in stored:
            storage.delete(storage.join(record.output, file))
        object_id = str(objects.object_id[row].as_py())
        wanted.append(_Wanted(row=row, object_id=object_id, file=file, ra=ra, dec=dec))
    return wanted, len(rows) - len(wanted)


def _ask_all(
    wanted: Sequence[_Wanted], request: Request, record: Record, client: PoliteClient, threads: int
) -> Generator[tuple[int, str | None], None, None]:
    """Row and reason of each object as it is done; the first error of the whole (not of one object) ends it."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        rows = {pool.submit(_fetch_one, entry, request, record.output, client): entry.row for entry in wanted}
        for future in as_completed(rows):
            if tries := future.result():
                record.add(tries)
                yield rows[future], tries[-1]["reason"]
    finally:
        client.stop()
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch_one(entry: _Wanted, request: Request, output: str, client: PoliteClient) -> list[dict[str, Any]]:
    """Ask for one image and store it; the tries as rows of the record, none where the work was stopped."""
    parameters = request.parameters(entry.ra, entry.dec)
    unobserved = 0.0

    def check(body: bytes, content_type: str) -> None:
        nonlocal unobserved
        try:
            unobserved = inspect(body, content_type, request, entry.ra, entry.dec)
        except BlankError as error:
            raise FinalError(str(error)) from error

    asked = client.ask(address(request.address, parameters), check)
    if asked is None:
        return []
    if asked.body is not None:
        storage.write(storage.join(output, entry.file), asked.body)
    return [
        {
            "object_id": entry.object_id,
            "file": entry.file,
            "number": number,
            "at": attempt.at,
            "seconds": attempt.seconds,
            "url": attempt.url,
            **parameters,
            "status": attempt.status,
            "reason": attempt.reason,
            "bytes": attempt.size_bytes,
            "sha256": None if attempt.reason or asked.body is None else hashlib.sha256(asked.body).hexdigest(),
            "unobserved": None if attempt.reason else unobserved,
        }
        for number, attempt in enumerate(asked.tries, start=1)
    ]


def _write_tables(
    output: str, objects: Objects, have: Sequence[int], reasons: dict[int, str], request: Request
) -> None:
    columns: dict[str, Any] = {"object_id": objects.object_id, "ra": objects.ra, "dec": objects.dec}
    if objects.label is not None:
        columns["label"] = pa.array(objects.label, mask=objects.label < 0)
    table = pa.table(columns)
    fetched = table.take(pa.array(have, pa.int64()))
    storage.write_table(
        storage.join(output, POSITIONS),
        fetched.append_column("file", pa.array(_files(objects, have, request), pa.string())),
    )
    failed = sorted(reasons)
    storage.write_table(
        storage.join(output, FAILED),
        table.take(pa.array(failed, pa.int64())).append_column(
            "reason", pa.array([reasons[row] for row in failed], pa.string())
        ),
    )


def _summary(
    output: str, objects: Objects, present: int, reasons: dict[int, str], request: Request, shards: int
) -> Summary:
    failed = len(reasons)
    fetched = len(objects) - failed - present
    text = [
        f"{len(objects)} objects = {fetched} fetched + {present} present + {failed} failed",
        f'{request.layer}: {request.size} px of {request.pixel_scale_arcsec:g}", a field of {request.fov_arcsec:.1f}"',
    ]
    told = sorted(reasons)[:_TOLD]
    text += [f"failed: {objects.object_id[row].as_py()}: {reasons[row]}" for row in told]
    if failed > _TOLD:
        text.append(f"failed: {failed - _TOLD} more")
    if failed:
        text.append(f"all in {storage.join(output, FAILED)}; the same command tries them again")
    if unusable := request.unusable():
        text.append(f"no shards: {unusable}")
    else:
        text.append(f"{shards} shards in {storage.join(output, 'shards')}")
    return Summary(
        verb="fetch",
        output=output,
        exit_code=ExitCode.EXCEPTIONS if failed else ExitCode.DONE,
        figures={
            "rows": len(objects),
            "fetched": fetched,
            "present": present,
            "failed": failed,
            "shards": shards,
        },
        text=tuple(text),
    )
