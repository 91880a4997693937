"""What the headers of a FITS file tell: its bands, their place on the sky, zero point, companions. No Ray, no torch."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping

from astropy.io import fits

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.fits_files import hdus_of, open_fits, unzipped
from deepshadows.sky.presets import Preset
from deepshadows.sky.tiles import BandSource, celestial_wcs, pixel_scale_arcsec

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


def stem(url: str) -> str:
    name = storage.name_of(url)
    for suffix in sorted(FITS_SUFFIXES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    return name


def named_tile(url: str, preset: Preset | None = None) -> str:
    """The tile that a file belongs to by its name alone."""
    match = (preset.file_name.match(stem(url)) if preset else None) or _NAME.match(stem(url))
    return match["tile"] if match and match["tile"] else stem(url)


def named_tile_or_folder(url: str, preset: Preset | None = None) -> str:
    """As `named_tile`; the folder where the name is that of a band alone, as `bands_of` has it."""
    name = named_tile(url, preset)
    band = _NAME.match(name)
    return storage.name_of(url.rpartition("/")[0]) if band and not band["tile"] else name


def bands_of(
    entry: storage.StoredObject, zero_point: float | None, preset: Preset | None
) -> Iterator[tuple[str, str, BandSource]]:
    """Bands found in one FITS file."""
    name = stem(entry.url)
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
            for number, hdu in enumerate(hdus_of(hdus, where)):
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
