"""What the headers of FITS files told, kept as Parquet in a folder: no file is opened twice. No Ray, no torch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.tiles import BandSource

VERSION = 3
FILES_PER_PART = 2_000
"""What a scan that is broken off does again at most: some seconds of work."""


@dataclass(frozen=True)
class Scanned:
    """What the headers of one file tell: its bands, or what is wrong with it."""

    url: str
    etag: str
    found: tuple[tuple[str, str, BandSource], ...] = ()
    problem: str = ""


class HeaderJournal:
    """Parts below a folder, each of some files by their addresses and etags.

    Parameters
    ----------
    folder : str
        Local or S3.
    reading : JSON value
        How headers are read; what was read in another way is not found.
    """

    def __init__(self, folder: str, reading: Any) -> None:
        way = hashlib.sha256(json.dumps([VERSION, reading]).encode()).hexdigest()[:16]
        self._folder = storage.join(folder, way)

    def read(self, wanted: AbstractSet[tuple[str, str]]) -> dict[tuple[str, str], Scanned]:
        """Those of the wanted addresses and etags that are known; parts most of which is out of date are written anew.

        Raises
        ------
        InputError
            A part is damaged.
        """
        parts = storage.list_objects(self._folder, (".parquet",))
        known, rows = {}, 0
        for part in parts:
            for scanned in _read(part.url):
                rows += 1
                if (key := (scanned.url, scanned.etag)) in wanted:
                    known[key] = scanned
        if rows > 2 * len(known):
            self._replace({part.url for part in parts}, known)
        return known

    def write(self, scanned: Sequence[Scanned]) -> str:
        """Keep what is good of it, and where; what is wrong with a file is looked at again each time."""
        good = [file for file in scanned if not file.problem]
        if not good:
            return ""
        found = [json.dumps([(tile, band, asdict(source)) for tile, band, source in file.found]) for file in good]
        table = pa.table({"url": [file.url for file in good], "etag": [file.etag for file in good], "found": found})
        content = json.dumps([(file.url, file.etag) for file in good]).encode()
        part = storage.join(self._folder, f"{hashlib.sha256(content).hexdigest()[:32]}.parquet")
        storage.write_table(part, table)
        return part

    def _replace(self, old: AbstractSet[str], known: Mapping[tuple[str, str], Scanned]) -> None:
        every = list(known.values())
        now = {self.write(every[start : start + FILES_PER_PART]) for start in range(0, len(every), FILES_PER_PART)}
        for part in old - now:
            storage.delete(part)


def _read(part: str) -> Iterator[Scanned]:
    try:
        rows = pq.read_table(storage.open_arrow(part)).to_pylist()
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(part, error) from error
    try:
        for row in rows:
            found = ((tile, band, _source(fields)) for tile, band, fields in json.loads(row["found"]))
            yield Scanned(row["url"], row["etag"], tuple(found))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{part}: damaged; delete it, and the headers are read again: {error}") from error


def _source(fields: dict[str, Any]) -> BandSource:
    known = {**fields, "shape": tuple(fields["shape"]), "wcs_header": sys.intern(fields["wcs_header"])}
    return BandSource(**known)
