"""A catalogue and its versions: CAT/vNNNN/<table>, and the pointer CAT/collection.properties. No Ray, no torch.

A version never changes once the pointer names it. The pointer is the HATS collection file that LSDB follows, so readers
of the root always see one whole version; it is swapped by one conditional write.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hats.catalog.dataset.collection_properties import CollectionProperties

from deepshadows import storage
from deepshadows.catalog.healpix import Partition
from deepshadows.outcomes import HeldError, InputError, NotFoundError, StorageError, UsageError

FORMAT_VERSION = 1
POINTER = "collection.properties"
CLAIM = "claim.json"
UNPLACED = "unplaced.parquet"
_OURS = re.compile(r"v\d{4,}/.*")


@dataclass(frozen=True, slots=True)
class Pointer:
    """What CAT/collection.properties says: the version, its table below the root, and the etag of this state."""

    version: str
    table: str
    etag: str


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version that is being written; `before` is what it will replace."""

    catalog: str
    name: str
    token: str
    before: Pointer | None

    @property
    def url(self) -> str:
        return storage.join(self.catalog, self.name)

    @property
    def table(self) -> str:
        """The table below the root, as the pointer names it."""
        return f"{self.name}/{table_name(self.catalog)}"

    @property
    def table_url(self) -> str:
        return storage.join(self.catalog, self.table)

    @property
    def unplaced_url(self) -> str:
        return storage.join(self.url, UNPLACED)

    @property
    def staging_url(self) -> str:
        return storage.join(self.url, "staging")


def table_name(catalog: str) -> str:
    """The name of the catalogue as HATS readers show it: that of its folder, without odd characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", storage.name_of(catalog)) or "catalog"


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
    found = _parse_pointer(url, text)
    written_in = (found.model_extra or {}).get("deepshadows_format")
    version = found.hats_primary_table_url.split("/")[0]
    if written_in is None or not re.fullmatch(r"v\d{4,}", version):
        raise InputError(f"{url}: a HATS collection that DeepShadows did not write; give another --catalog")
    if written_in != str(FORMAT_VERSION):
        raise InputError(
            f"{url}: written in format {written_in}, this version knows {FORMAT_VERSION}; "
            "use the DeepShadows that wrote it, or give another --catalog"
        )
    return Pointer(version, found.hats_primary_table_url, etag)


def _parse_pointer(url: str, text: bytes) -> CollectionProperties:
    """What `hats` makes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / POINTER
        path.write_bytes(text)
        try:
            return CollectionProperties.read_from_file(path)
        except Exception as error:  # the parser of properties raises what it likes
            raise InputError(f"{url}: damaged: {error}") from error


def _pointer(catalog: str) -> Pointer:
    pointer = read_pointer(catalog)
    if pointer is None:
        raise NotFoundError(f"{catalog}: no catalogue there (no {POINTER}); `deepshadows publish` writes one")
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
    number = int(before.version[1:]) if before else 0
    token = uuid.uuid4().hex
    while True:
        number += 1
        version = NewVersion(catalog, f"v{number:04d}", token, before)
        if storage.create(storage.join(version.url, CLAIM), json.dumps({"publisher": token}).encode()):
            return version


def abandon(version: NewVersion) -> None:
    """Remove what was written of a version that will not be published; its number stays taken."""
    storage.delete_folder(version.table_url)
    storage.delete_folder(version.staging_url)
    storage.delete(version.unplaced_url)


def swap(version: NewVersion) -> None:
    """Let the pointer name the new version, where it still is as it was when the version was begun.

    Where the store does not answer, its files stay: the write may have come through.

    Raises
    ------
    HeldError
        Another publisher has finished since; the version is removed.
    """
    url = storage.join(version.catalog, POINTER)
    data = _pointer_text(version)
    before = version.before
    if storage.create(url, data) if before is None else storage.replace(url, data, before.etag):
        return
    now = read_pointer(version.catalog)
    if now is None or now.version != version.name:  # else our own write, repeated by the client after a lost answer
        abandon(version)
        raise HeldError(
            f"{version.catalog}: another publish finished first ({now.version if now else 'pointer removed'} is "
            f"current); this one changed nothing; run it again if it is still wanted"
        )


def _pointer_text(version: NewVersion) -> bytes:
    properties = CollectionProperties(
        name=table_name(version.catalog),
        hats_primary_table_url=version.table,
        deepshadows_format=str(FORMAT_VERSION),
        deepshadows_version=version.name,
        deepshadows_publisher=version.token,
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
    return [Partition(order, pixel, 0) for order, pixel in pairs]


def iterate_current(catalog: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Rows of the current version, one partition after the other; some columns or all."""
    catalog = storage.normalise(catalog)
    table_url = storage.join(catalog, _pointer(catalog).table)
    schema = pq.read_schema(storage.open_arrow(storage.join(table_url, "dataset", "_common_metadata")))
    schema = schema.remove_metadata()
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    yield wanted.empty_table()
    for partition in partitions_of(table_url):
        with storage.open_arrow(storage.join(table_url, partition.path)) as file:
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
    catalog = storage.normalise(catalog)
    url = storage.join(catalog, _pointer(catalog).version, UNPLACED)
    with storage.open_arrow(url) as file:
        return pq.ParquetFile(file).read(columns).replace_schema_metadata(None)
