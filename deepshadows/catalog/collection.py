"""A catalogue and its pointer, CAT/collection.properties: which version is current, which are published.

A version (`version_folder`) never changes once the pointer names it. The pointer is the HATS collection file that LSDB
follows, so readers of the root always see one whole version; each change of it is one conditional write. It also lists
the published versions, so that what may be rolled back to and what may be removed is decided by the same write.
No Ray, no torch.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hats.catalog.dataset.collection_properties import CollectionProperties
from hats.catalog.dataset.table_properties import TableProperties

from deepshadows import storage
from deepshadows.catalog.healpix import Partition
from deepshadows.catalog.version_folder import (
    CLAIM,
    POINTER,
    VERSION_NAME,
    VersionFolder,
    index_name,
    margin_name,
    table_name,
)
from deepshadows.outcomes import Failure, HeldError, InputError, NotFoundError, StorageError, UsageError

FORMAT_VERSION = 2
"""1 had no margin, no index and no list of published versions."""
_OURS = re.compile(rf"({VERSION_NAME.pattern}|reprocess)/.*")


@dataclass(frozen=True, slots=True)
class Pointer:
    """What CAT/collection.properties says, and the etag of this state.

    Attributes
    ----------
    version : str
        The one that readers see.
    table : str
        Its table below the root.
    published : tuple of str
        All versions that can be read and rolled back to, by number.
    token : str
        Of who wrote this state.
    """

    version: str
    table: str
    etag: str
    published: tuple[str, ...]
    token: str

    @property
    def newest(self) -> int:
        """The highest number published; it never falls, since expiry keeps the newest."""
        return int(self.published[-1][1:])


@dataclass(frozen=True, slots=True)
class NewVersion(VersionFolder):
    """A version that is being written; `before` is what it will replace."""

    token: str
    before: Pointer | None


def read_pointer(catalog: str) -> Pointer | None:
    """The current state of the pointer, None where nothing is published yet.

    Raises
    ------
    InputError
        The root is a HATS collection of someone else, or of another version of DeepShadows.
    """
    url = storage.join(catalog, POINTER)
    try:
        etag = storage.stat(url).etag
        text = storage.read(url)
    except NotFoundError:
        return None
    found = _parse(url, text, CollectionProperties)
    extra = found.model_extra or {}
    written_in = extra.get("deepshadows_format")
    version = found.hats_primary_table_url.split("/")[0]
    if written_in is None or not VERSION_NAME.fullmatch(version):
        raise InputError(f"{url}: a HATS collection that DeepShadows did not write; give another catalogue")
    if written_in != str(FORMAT_VERSION):
        raise InputError(_other_format(url, written_in, catalog, found.hats_primary_table_url))
    published = tuple(extra.get("deepshadows_published", "").split())
    if version not in published or not all(VERSION_NAME.fullmatch(name) for name in published):
        raise InputError(f"{url}: damaged: names {version} as current and {published or 'nothing'} as published")
    token = str(extra.get("deepshadows_publisher", ""))
    return Pointer(version, found.hats_primary_table_url, etag, published, token)


def _parse(url: str, text: bytes, kind: Any) -> Any:
    """What `hats` makes of a properties file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / storage.name_of(url)
        path.write_bytes(text)
        try:
            return kind.read_from_file(path)
        except Exception as error:  # the parser of properties raises what it likes
            raise InputError(f"{url}: damaged: {error}") from error


def _other_format(url: str, written_in: str, catalog: str, table: str) -> str:
    """What to do with a catalogue of another format: an older one is published again from its runs."""
    told = f"{url}: written in format {written_in}, this DeepShadows knows {FORMAT_VERSION}; "
    if not written_in.isdigit() or int(written_in) > FORMAT_VERSION:
        return told + "use the DeepShadows that wrote it, or give another --catalog"
    try:
        runs = " ".join(f"--run {run['url']}" for run in runs_of(read_properties(storage.join(catalog, table))))
    except Failure:
        runs = "--run RUN"
    return told + f"publish its runs again beside it: deepshadows publish {runs} --catalog {catalog}-{FORMAT_VERSION}"


def read_properties(table_url: str) -> TableProperties:
    """What hats.properties of a table says; raises `NotFoundError` where there is no table."""
    url = storage.join(table_url, "hats.properties")
    return _parse(url, storage.read(url), TableProperties)


def runs_of(properties: TableProperties) -> list[dict[str, str]]:
    """The runs that a table was made from, as the provenance in its properties has them."""
    found = json.loads((properties.model_extra or {}).get("deepshadows_runs", "[]"))
    return list(found)


def current(catalog: str) -> VersionFolder:
    """The version that readers of the root see now.

    Raises
    ------
    NotFoundError
        Nothing is published there.
    InputError
        The root is no catalogue of this DeepShadows.
    """
    return VersionFolder(catalog, require_pointer(catalog).version)


def require_pointer(catalog: str) -> Pointer:
    """The pointer, where there must be one; raises like `current`."""
    pointer = read_pointer(catalog)
    if pointer is None:
        begun = [name for name in storage.children(catalog) if VERSION_NAME.fullmatch(name.rstrip("/"))]
        half = f"a publish was begun ({begun[-1].rstrip('/')}) but is not finished; " if begun else ""
        raise NotFoundError(
            f"{catalog}: no catalogue there (no {POINTER}); {half}`deepshadows publish --catalog {catalog}` writes one"
        )
    return pointer


def check_store(catalog: str) -> None:
    """Refuse a store that does not honour If-None-Match and If-Match, or a folder that holds something else."""
    canary = storage.join(catalog, f".canary-{uuid.uuid4().hex}")
    storage.create(canary, b"1")
    storage.create(canary, b"2")
    states = [storage.read(canary)]
    etag = storage.stat(canary).etag
    for content in (b"33", b"4"):  # the second with an etag that has gone
        storage.replace(canary, content, etag)
        states.append(storage.read(canary))
    storage.delete(canary)
    if states != [b"1", b"33", b"33"]:
        raise StorageError(
            f"{catalog}: this store ignores If-None-Match or If-Match, so two publishers could mix; use another"
        )
    if not storage.exists(storage.join(catalog, POINTER)):
        names = (storage.relative(entry.url, catalog) for entry in storage.list_objects(catalog))
        foreign = next((name for name in names if not _OURS.fullmatch(name)), None)
        if foreign is not None:
            raise UsageError(f"{catalog}: holds {foreign}, which is no part of a catalogue; give another --catalog")


def claim_version(catalog: str) -> NewVersion:
    """Take the next free version number; what a publisher that died has taken is left alone for ever.

    Its tasks may still write there, so the number is never given out again.
    """
    before = read_pointer(catalog)
    number = before.newest if before else 0
    token = uuid.uuid4().hex
    while True:
        number += 1
        version = NewVersion(catalog, f"v{number:04d}", token, before)
        if storage.create(version.claim_url, json.dumps({"publisher": token}).encode()):
            return version


def abandon(version: VersionFolder) -> None:
    """Remove what was written of a version that is not published; its number stays taken."""
    for name in storage.children(version.url):
        if name.endswith("/"):
            storage.delete_folder(storage.join(version.url, name.rstrip("/")))
        elif name != CLAIM:
            storage.delete(storage.join(version.url, name))


def swap(version: NewVersion) -> None:
    """Let the pointer name the new version, where the one that it was begun from is still current.

    Versions that were expired meanwhile are no conflict. Where the store does not answer, the files of the version
    stay: the write may have come through.

    Raises
    ------
    HeldError
        Another version has been published or made current since; this one is removed.
    """
    while True:
        now = read_pointer(version.catalog)
        if now is not None and version.name in now.published:
            return  # our own write, whose answer was lost; another publish may have followed it
        if _name(now) != _name(version.before) or (now is not None and now.newest > version.number):
            abandon(version)
            raise HeldError(
                f"{version.catalog}: another publish finished first ({_name(now) or 'pointer removed'} is current); "
                "this one changed nothing; run it again if it is still wanted"
            )
        if move_pointer(version, now, [*(now.published if now else ()), version.name], version.token):
            return


def _name(pointer: Pointer | None) -> str | None:
    return pointer.version if pointer else None


def move_pointer(to: VersionFolder, now: Pointer | None, published: Sequence[str], token: str) -> bool:
    """Write the pointer where it still is as `now` has it; False where it has changed."""
    url = storage.join(to.catalog, POINTER)
    data = collection_text(
        to.catalog,
        below=f"{to.name}/",
        deepshadows_format=str(FORMAT_VERSION),
        deepshadows_version=to.name,
        deepshadows_published=" ".join(sorted(published, key=lambda name: int(name[1:]))),
        deepshadows_publisher=token,
    )
    if storage.create(url, data) if now is None else storage.replace(url, data, now.etag):
        return True
    found = read_pointer(to.catalog)  # a client that repeats a write whose answer was lost is told that it failed
    return found is not None and (found.token, found.version) == (token, to.name)


def collection_text(catalog: str, *, below: str = "", **extra: str) -> bytes:
    """A HATS collection file that names table, margin and index, `below` the folder it lies in."""
    margin, index = below + margin_name(catalog), below + index_name(catalog)
    properties = CollectionProperties(
        name=table_name(catalog),
        hats_primary_table_url=below + table_name(catalog),
        all_margins=[margin],
        default_margin=margin,
        all_indexes={"object_id": index},
        default_index="object_id",
        **extra,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / POINTER
        properties.to_properties_file_path(path)
        return path.read_bytes()


def partitions_of(table_url: str) -> list[Partition]:
    """Partitions of a table, in the order of the sky; their row counts are not known (0)."""
    data = storage.read(storage.join(table_url, "partition_info.csv"))
    table = pyarrow.csv.read_csv(pa.BufferReader(data))
    pairs = zip(table["Norder"].to_pylist(), table["Npix"].to_pylist(), strict=True)
    return sorted((Partition(order, pixel, 0) for order, pixel in pairs), key=lambda partition: partition.first_index)


def iterate_current(catalog: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Rows of the current version, one partition after the other; some columns or all."""
    yield from iterate_version(current(storage.normalise(catalog)), columns)


def iterate_version(version: VersionFolder, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Rows of a version, one partition after the other; some columns or all. The first table is empty."""
    with storage.open_arrow(storage.join(version.table_url, "dataset", "_common_metadata")) as file:
        schema = pq.read_schema(file).remove_metadata()
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    yield wanted.empty_table()
    for partition in partitions_of(version.table_url):
        with storage.open_arrow(storage.join(version.table_url, partition.path)) as file:
            yield pq.ParquetFile(file).read(columns).replace_schema_metadata(None)


def read_current(catalog: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of the current version in one table, sorted by `_healpix_29` and object_id within partitions.

    Parameters
    ----------
    catalog : str
        Root of the catalogue, local or s3://.
    columns : list of str, optional
        Those only; all by default.

    Raises
    ------
    NotFoundError
        Nothing is published there.
    """
    return pa.concat_tables(iterate_current(catalog, columns))


def read_unplaced(catalog: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of the current version that have no place on the sky; no `_healpix_29`."""
    with storage.open_arrow(current(storage.normalise(catalog)).unplaced_url) as file:
        return pq.ParquetFile(file).read(columns).replace_schema_metadata(None)
