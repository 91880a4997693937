"""Which tiles an input has, and which tile owns a position: built from headers only. No Ray, no torch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.fits_files import fits_errors
from deepshadows.sky.footprints import Footprints, footprint
from deepshadows.sky.presets import Preset, preset_named
from deepshadows.sky.tile_headers import FITS_SUFFIXES, bands_of, named_tile, stem
from deepshadows.sky.tiles import BandSource, TileFiles

SCAN_THREADS = 16
FILES_PER_PART = 2_000
"""What a scan that is broken off does again at most: some seconds of work."""
JOURNAL_VERSION = 2


@dataclass(frozen=True)
class TileIndex:
    """Tiles sorted by id, and the objects that could not be indexed with the reason."""

    tiles: tuple[TileFiles, ...]
    problems: tuple[tuple[str, str], ...] = ()

    def to_table(self) -> pa.Table:
        """One row a tile and band: where it is, its shape, zero point, scale, centre and WCS cards."""
        rows = [
            {
                "tile": tile.tile_id,
                "band": band,
                "url": source.url,
                "etag": source.etag,
                "size_bytes": source.size_bytes,
                "science_hdu": source.science_hdu,
                "weight_hdu": source.weight_hdu,
                "mask_hdu": source.mask_hdu,
                "plane": source.plane,
                "height_pix": source.shape[0],
                "width_pix": source.shape[1],
                "zero_point": source.zero_point,
                **_place(source),
                "wcs": source.wcs_header,
            }
            for tile in self.tiles
            for band, source in sorted(tile.bands.items())
        ]
        return pa.Table.from_pylist(rows, schema=_INDEX_SCHEMA)

    @cached_property
    def footprints(self) -> Footprints:
        """Where the tiles lie, in their order."""
        return Footprints([tile.reference for tile in self.tiles])

    def owners(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The tile in which each position lies deepest inside, and its depth: see `Footprints.owners`."""
        return self.footprints.owners(ra, dec)


_INDEX_SCHEMA = pa.schema(
    [
        ("tile", pa.string()),
        ("band", pa.string()),
        ("url", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("science_hdu", pa.int32()),
        ("weight_hdu", pa.int32()),
        ("mask_hdu", pa.int32()),
        ("plane", pa.int32()),
        ("height_pix", pa.int32()),
        ("width_pix", pa.int32()),
        ("zero_point", pa.float64()),
        ("pixel_scale_arcsec", pa.float64()),
        ("ra_center", pa.float64()),
        ("dec_center", pa.float64()),
        ("radius_deg", pa.float64()),
        ("wcs", pa.string()),
    ]
)


def scan_tiles(
    url: str, zero_point: float | None = None, survey: str | None = None, *, journal: str | None = None
) -> TileIndex:
    """Index every FITS file below `url` by its headers, read by ranges in many threads.

    Parameters
    ----------
    url : str
        Folder or file, local or S3.
    zero_point : float, optional
        Magnitude zero point of files whose header states none.
    survey : str, optional
        Name of a `presets.Preset`, which knows file names, filters, zero point and scale.
    journal : str, optional
        Folder that keeps what was found in each 2000 files, by their addresses and etags: a scan that was broken off
        goes on there.

    Returns
    -------
    TileIndex
        A file that is not FITS, has no usable WCS, band or zero point is listed in `problems`.
    """
    return index_files(storage.list_objects(url, FITS_SUFFIXES), zero_point, preset_named(survey), journal)


def index_files(
    entries: Sequence[storage.StoredObject],
    zero_point: float | None = None,
    preset: Preset | None = None,
    journal: str | None = None,
) -> TileIndex:
    """Index these FITS files; see `scan_tiles`."""
    entries = [entry for entry in entries if preset is None or not preset.passed_over.search(stem(entry.url))]
    grouped: dict[str, dict[str, BandSource]] = defaultdict(dict)
    problems: list[tuple[str, str]] = []
    for scanned in _scan(entries, zero_point, preset, journal):
        try:
            for tile_id, band, source in scanned.found:
                if band in grouped[tile_id]:
                    other = grouped[tile_id][band].url
                    raise InputError(f"{scanned.url}: band {band} of tile {tile_id} is also in {other}")
                grouped[tile_id][band] = source
            if scanned.problem:
                raise InputError(scanned.problem)
        except InputError as error:
            problems.append((scanned.url, str(error)))
    lacking: dict[str, list[str]] = defaultdict(list)
    for problem_url, reason in problems:
        lacking[named_tile(problem_url, preset)].append(reason)
    tiles = tuple(
        TileFiles(tile, bands, tuple(lacking.get(tile, ()))) for tile, bands in sorted(grouped.items()) if bands
    )
    return TileIndex(tiles, tuple(problems))


@dataclass(frozen=True)
class _Scanned:
    """What the headers of one file tell: its bands, or what is wrong with it."""

    url: str
    found: tuple[tuple[str, str, BandSource], ...] = ()
    problem: str = ""


def _scan(
    entries: list[storage.StoredObject], zero_point: float | None, preset: Preset | None, journal: str | None
) -> Iterator[_Scanned]:
    """The headers of all files, in their order."""
    with ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="headers") as pool:
        for start in range(0, len(entries), FILES_PER_PART):
            some = entries[start : start + FILES_PER_PART]
            whole = journal and len(some) == FILES_PER_PART
            part = _journal_part(journal, some, zero_point, preset) if journal and whole else None
            if part and storage.exists(part):
                yield from _read_journal(part)
                continue
            scanned = list(pool.map(lambda entry: _scan_file(entry, zero_point, preset), some))
            if part:
                _write_journal(part, scanned)
            yield from scanned


def _scan_file(entry: storage.StoredObject, zero_point: float | None, preset: Preset | None) -> _Scanned:
    try:
        with fits_errors(entry.url):
            return _Scanned(entry.url, tuple(bands_of(entry, zero_point, preset)))
    except InputError as error:
        return _Scanned(entry.url, problem=str(error))


def _journal_part(
    journal: str, some: list[storage.StoredObject], zero_point: float | None, preset: Preset | None
) -> str:
    """The address of what is known of these very files."""
    survey = preset.name if preset else None
    content = json.dumps([JOURNAL_VERSION, zero_point, survey, [(entry.url, entry.etag) for entry in some]])
    return storage.join(journal, f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.parquet")


def _write_journal(part: str, scanned: list[_Scanned]) -> None:
    found = [json.dumps([(tile, band, asdict(source)) for tile, band, source in file.found]) for file in scanned]
    columns = {"url": [file.url for file in scanned], "found": found, "problem": [file.problem for file in scanned]}
    storage.write_table(part, pa.table(columns))


def _read_journal(part: str) -> Iterator[_Scanned]:
    try:
        rows = pq.read_table(storage.open_arrow(part)).to_pylist()
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(part, error) from error
    for row in rows:
        found = ((tile, band, _source(fields)) for tile, band, fields in json.loads(row["found"]))
        yield _Scanned(row["url"], tuple(found), row["problem"])


def _source(fields: dict[str, Any]) -> BandSource:
    return BandSource(
        **{
            **fields,
            "shape": tuple(fields["shape"]),
            "wcs_header": sys.intern(fields["wcs_header"]),
        }
    )


def _place(source: BandSource) -> dict[str, float]:
    """Scale, centre and radius of a band's image, degrees and arcsec."""
    at = footprint(source)
    x, y, z = at.centre
    return {
        "pixel_scale_arcsec": at.pixel_scale_arcsec,
        "ra_center": float(np.degrees(np.arctan2(y, x)) % 360.0),
        "dec_center": float(np.degrees(np.arctan2(z, np.hypot(x, y)))),
        "radius_deg": float(np.degrees(at.radius_rad)),
    }
