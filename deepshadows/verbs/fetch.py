"""`fetch`: the public lists of the paper, or images from the Legacy Surveys viewer. Runs in this process, no Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, Summary
from deepshadows.settings import Fetch
from deepshadows.sky.labelled_features import ARTIFACTS, LSBGS, labelled_features
from deepshadows.sky.public_lists import PUBLIC_LISTS, URL, PublicList, blob_id, count_table, manifest
from deepshadows.verbs.fetch_cutouts import fetch_cutouts
from deepshadows.verbs.polite_http import PoliteClient
from deepshadows.verbs.progress import track

MANIFEST, FEATURES = "manifest.json", "hsc_features_labelled.csv"


def run(settings: Fetch) -> Summary:
    """Download what is not there yet; a rerun of the same command asks for the rest.

    Raises
    ------
    UsageError
        The output belongs to another request.
    InputError
        A list is not the one published, or positions cannot be read.
    StorageError
        The server does not answer.
    """
    client = PoliteClient(
        per_second=settings.requests_per_s,
        retries=settings.retries,
        timeout_s=settings.timeout_s,
        backoff_s=settings.backoff_s,
    )
    if settings.what == "cutouts":
        return fetch_cutouts(settings, client)
    return fetch_datasets(settings, client)


def fetch_datasets(settings: Fetch, client: PoliteClient, lists: Sequence[PublicList] = PUBLIC_LISTS) -> Summary:
    """All lists, each verified against its blob id before it is put in place; and the table that two of them make."""
    output = storage.normalise(settings.output)
    base = (settings.url or URL).rstrip("/")
    text: list[str] = []
    told = manifest(lists)
    fetched = 0
    contents: dict[str, bytes] = {}
    for entry, record in zip(track(lists, "fetching lists", len(lists)), told["files"], strict=True):
        place = storage.join(output, entry.name)
        data = storage.read(place) if storage.exists(place) else None
        present = data is not None and blob_id(data) == entry.blob_id
        if data is None or not present:
            data = _download(f"{base}/{entry.name}", entry, client)
            storage.write(place, data)
            fetched += 1
        contents[entry.name] = data
        rows, columns = count_table(data, entry)
        record.update(url=f"{base}/{entry.name}", rows=rows, columns=columns, size_bytes=len(data))
        state = "present" if present else "fetched"
        text.append(f"{entry.name:26} {state}  {rows:6} rows {columns:3} columns  {entry.blob_id[:12]}")
    storage.write(storage.join(output, MANIFEST), json.dumps(told, indent=2).encode())
    if LSBGS in contents and ARTIFACTS in contents:
        storage.write(storage.join(output, FEATURES), labelled_features(contents[LSBGS], contents[ARTIFACTS]))
        text.append(f"{FEATURES:26} both lists of features in one, for `deepshadows experiments --features`")
    count = len(lists)
    return Summary(
        verb="fetch",
        output=output,
        figures={"rows": count, "fetched": fetched, "present": count - fetched, "failed": 0},
        text=(*text, f"licence: {told['licence']}"),
    )


def _download(url: str, entry: PublicList, client: PoliteClient) -> bytes:
    asked = client.ask(url, lambda _body, _content_type: None)
    if asked is None or asked.body is None:
        last = asked.tries[-1] if asked else None
        tries = len(asked.tries) if asked else 0
        reason = last.reason if last else "stopped"
        raise Failure(f"{url}: cannot be downloaded ({reason}; {tries} tries); run the same command again")
    found = blob_id(asked.body)
    if found != entry.blob_id:
        raise InputError(
            f"{url}: not the published list: its blob id is {found}, that of {entry.name} is {entry.blob_id} "
            f"({len(asked.body)} bytes came); nothing was written; check --url"
        )
    return asked.body
