"""Which tiles an input has, and which tile owns a position: built from headers only. No Ray, no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.fits_files import fits_errors
from deepshadows.sky.footprints import Footprints, footprint
from deepshadows.sky.header_journal import FILES_PER_PART, HeaderJournal, Scanned
from deepshadows.sky.presets import Preset, preset_named
from deepshadows.sky.tile_headers import FITS_SUFFIXES, bands_of, named_tile_or_folder, stem
from deepshadows.sky.tiles import BandSource, TileFiles

SCAN_THREADS = 16


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
        Folder that keeps what was found, by addresses and etags: a file that is known there is not opened.

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
        lacking[named_tile_or_folder(problem_url, preset)].append(reason)
    tiles = tuple(
        TileFiles(tile, bands, _problems_of(tile, bands, lacking, preset))
        for tile, bands in sorted(grouped.items())
        if bands
    )
    return TileIndex(tiles, tuple(problems))


def _problems_of(
    tile: str, bands: Mapping[str, BandSource], lacking: Mapping[str, list[str]], preset: Preset | None
) -> tuple[str, ...]:
    """What is wrong with files that are named as the tile, or as its other bands: headers may name it otherwise."""
    if not lacking:
        return ()
    names = dict.fromkeys([tile, *(named_tile_or_folder(source.url, preset) for source in bands.values())])
    return tuple(reason for name in names for reason in lacking.get(name, ()))


def _scan(
    entries: Sequence[storage.StoredObject], zero_point: float | None, preset: Preset | None, folder: str | None
) -> Iterator[Scanned]:
    """The headers of all files, in their order."""
    journal = HeaderJournal(folder, [zero_point, preset.name if preset else None]) if folder else None
    known = journal.read({(entry.url, entry.etag) for entry in entries}) if journal else {}
    missing = [entry for entry in entries if (entry.url, entry.etag) not in known]
    with ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="headers") as pool:
        for start in range(0, len(missing), FILES_PER_PART):
            some = missing[start : start + FILES_PER_PART]
            scanned = list(pool.map(lambda entry: _scan_file(entry, zero_point, preset), some))
            known |= {(file.url, file.etag): file for file in scanned}
            if journal:
                journal.write(scanned)
    return (known[entry.url, entry.etag] for entry in entries)


def _scan_file(entry: storage.StoredObject, zero_point: float | None, preset: Preset | None) -> Scanned:
    try:
        with fits_errors(entry.url):
            return Scanned(entry.url, entry.etag, tuple(bands_of(entry, zero_point, preset)))
    except InputError as error:
        return Scanned(entry.url, entry.etag, problem=str(error))


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
