"""Which tiles an input has, and which tile owns a position: built from headers only. No Ray, no torch."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.fits_files import fits_errors, open_fits, unzipped
from deepshadows.sky.footprints import Footprints, footprint
from deepshadows.sky.presets import Preset, preset_named
from deepshadows.sky.tiles import BandSource, TileFiles, celestial_wcs, pixel_scale_arcsec

SCAN_THREADS = 16
FILES_PER_PART = 2_000
"""What a scan that is broken off does again at most: some seconds of work."""
JOURNAL_VERSION = 2
FITS_SUFFIXES = (".fits", ".fits.fz", ".fits.gz", ".fit", ".fz")
BANDS = "ugrizyY"
_NAME = re.compile(rf"^(?:(?P<tile>.+)[_.-])?(?P<band>[{BANDS}Z])(?:[_.-](?:sci|image|nobkg))?$", re.IGNORECASE)
_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "ZEROPT", "MAGZP", "PHOTZP")
_KINDS = {
    "science": ("SCI", "IMAGE", "COMPRESSED_IMAGE", "PRIMARY", ""),
    "weight": ("WGT", "WEIGHT", "IVAR", "INVVAR"),
    "mask": ("MSK", "MASK", "DQ", "DATA_QUALITY"),
}
_WCS_CARDS = re.compile(
    r"^(CTYPE|CRVAL|CRPIX|CDELT|CUNIT|CROTA|CD|PC|PV|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX|WCSAXES|WCSNAME|A_|B_|AP_|BP_)"
)


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
    entries = [entry for entry in entries if preset is None or not preset.passed_over.search(_stem(entry.url))]
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
            return _Scanned(entry.url, tuple(_bands_of(entry, zero_point, preset)))
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
    except (pa.ArrowException, OSError) as error:
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


def _stem(url: str) -> str:
    name = storage.name_of(url)
    for suffix in sorted(FITS_SUFFIXES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    return name


def named_tile(url: str, preset: Preset | None = None) -> str:
    """The tile that a file belongs to by its name alone."""
    match = (preset.file_name.match(_stem(url)) if preset else None) or _NAME.match(_stem(url))
    return match["tile"] if match and match["tile"] else _stem(url)


def _bands_of(
    entry: storage.StoredObject, zero_point: float | None, preset: Preset | None
) -> Iterator[tuple[str, str, BandSource]]:
    """Bands found in one FITS file."""
    name = _stem(entry.url)
    named = preset.file_name.match(name) if preset else None
    reading = storage.open_reader(entry.url, size_bytes=entry.size_bytes)
    with reading as reader, open_fits(unzipped(reader), entry.url) as hdus:
        headers = _image_headers(hdus, entry.url)
    science = [number for number, header in headers.items() if _kind(header) == "science"]
    if not science:
        raise InputError(f"{entry.url}: no science image among its HDUs")
    found = 0
    for number in science:
        header = headers[number]
        wcs_header = _wcs_cards(header, entry.url, preset)
        for band, plane in _bands_in_header(header, name, alone=len(science) == 1, preset=preset):
            found += 1
            shared = len(science) > 1 or plane is not None
            yield (
                named["tile"] if named else _tile_id(header, name, band, entry.url, shared=shared),
                band,
                BandSource(
                    url=entry.url,
                    etag=entry.etag,
                    size_bytes=entry.size_bytes,
                    science_hdu=number,
                    weight_hdu=_companion(headers, number, "weight", plane),
                    mask_hdu=_companion(headers, number, "mask", plane),
                    plane=plane,
                    shape=(int(header["NAXIS2"]), int(header["NAXIS1"])),
                    zero_point=_zero_point(header, zero_point, entry.url, preset),
                    wcs_header=wcs_header,
                ),
            )
    if not found:
        raise InputError(f"{entry.url}: no band in the header (BAND, FILTER, BANDS) nor in the file name")


def _image_headers(hdus: fits.HDUList, where: str) -> dict[int, fits.Header]:
    """Headers of image HDUs, the primary's keywords filling in what they lack."""
    headers: dict[int, fits.Header] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, hdu in enumerate(hdus):
                if not hdu.is_image or hdu.header.get("NAXIS", 0) not in (2, 3):
                    continue
                header = hdu.header.copy()
                if number:
                    for key in ("BAND", "FILTER", "SURVEY", "TILENAME", "BUNIT", *_ZERO_POINT_KEYS):
                        if key not in header and key in hdus[0].header:
                            header[key] = hdus[0].header[key]
                headers[number] = header
    except (OSError, ValueError, fits.VerifyError) as error:
        raise InputError(f"{where}: a header cannot be read: {error}") from error
    return headers


def _kind(header: fits.Header) -> str:
    """What an HDU holds, by EXTNAME or IMAGETYP; HSC-style names end in the band."""
    name = str(header.get("EXTNAME", header.get("IMAGETYP", ""))).strip().upper()
    for kind, names in _KINDS.items():
        if name in names:
            return kind
    if name.startswith(("PSF", "MODEL", "CHI2")):
        return "other"
    return "science" if _NAME.match(name) else "other"


def _bands_in_header(
    header: fits.Header, name: str, *, alone: bool, preset: Preset | None
) -> list[tuple[str, int | None]]:
    """Bands of one science HDU: planes of a cube, or one."""
    if header["NAXIS"] == 3:
        letters = str(header.get("BANDS", "")).strip()
        if len(letters) != header["NAXIS3"]:
            return []
        return [(letter, plane) for plane, letter in enumerate(letters)]
    named = preset.file_name.match(name) if preset and alone else None
    if preset and named:
        return [(preset.band(named["band"]) or _canonical(named["band"]), None)]
    stated = str(header.get("BAND", header.get("FILTER", ""))).strip()
    if preset and (known := preset.band(stated) or preset.band(str(header.get("EXTNAME", "")))):
        return [(known, None)]
    if stated and stated[0] in BANDS + "Z" and (len(stated) == 1 or stated[1] in " ."):
        return [(_canonical(stated[0]), None)]
    for candidate in (str(header.get("EXTNAME", "")), name if alone else ""):
        if match := _NAME.match(candidate):
            return [(_canonical(match["band"]), None)]
    return []


def _canonical(band: str) -> str:
    """VIKING's Z is a z band; Y and y stay apart from u, g, r, i, z as y."""
    return band.lower()


def _tile_id(header: fits.Header, name: str, band: str, url: str, *, shared: bool) -> str:
    if header.get("TILENAME"):
        return str(header["TILENAME"]).strip()
    if shared:
        return name
    match = _NAME.match(name)
    stem = match["tile"] if match and _canonical(match["band"]) == band else name
    return stem or storage.name_of(url.rsplit("/", 1)[0])


def _companion(headers: Mapping[int, fits.Header], science: int, kind: str, plane: int | None) -> int | None:
    """The weight or mask HDU that belongs to a science HDU: the next of its kind before another science HDU."""
    for number in sorted(headers):
        if number > science:
            if _kind(headers[number]) == "science":
                return None
            same = all(headers[number].get(key) == headers[science].get(key) for key in ("NAXIS1", "NAXIS2"))
            if _kind(headers[number]) == kind and same and (plane is None or headers[number]["NAXIS"] == 3):
                return number
    return None


def _zero_point(header: fits.Header, given: float | None, where: str, preset: Preset | None) -> float:
    if str(header.get("BUNIT", "")).strip().lower() in ("nanomaggy", "nanomaggies", "nmgy"):
        return 22.5
    for key in _ZERO_POINT_KEYS:
        if isinstance(header.get(key), (int, float)):
            return float(header[key])
    if "SURVEY" in header and "IMAGETYP" in header:  # Legacy Surveys viewer and bricks: nanomaggies
        return 22.5
    if preset is not None:
        return preset.zero_point_of(header, given)
    if given is None:
        raise InputError(
            f"{where}: no zero point in the header ({', '.join(_ZERO_POINT_KEYS)}); give --zero-point or --survey"
        )
    return given


def _wcs_cards(header: fits.Header, where: str, preset: Preset | None) -> str:
    wcs = celestial_wcs(header, where)
    if preset is not None:
        preset.check_scale(pixel_scale_arcsec(wcs), where)
    cards = [card for card in header.cards if _WCS_CARDS.match(card.keyword)]
    return sys.intern(str(fits.Header([("NAXIS", 2), *cards]).tostring(endcard=False, padding=False)))


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
