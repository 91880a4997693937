"""The protocol of the Legacy Surveys viewer: what to ask of it, and whether an answer is the image asked for.

The viewer answers many things with status 200: an error page, a smaller image than asked for, other bands than asked
for, an image of nothing outside its footprint. Nothing here opens a connection or a file: no I/O, no Ray, no torch.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image

from deepshadows.outcomes import InputError, UsageError
from deepshadows.settings import Fetch
from deepshadows.sky.cutouts import Geometry, same_scale
from deepshadows.sky.fits_files import hdus_of, open_fits
from deepshadows.sky.stretch import DES, HSC
from deepshadows.sky.tiles import Tile, celestial_wcs, pixel_scale_arcsec

URL = "https://www.legacysurvey.org/viewer"
BLANK_SHARE = 0.5
"""An image of which this share was never observed is no image of the object."""

_NATIVE_ZOOM = 14
_NATIVE_SCALE_ARCSEC: Mapping[str, float] = MappingProxyType(
    {"des-dr1": 0.262, "ls-dr8": 0.262, "ls-dr9": 0.262, "ls-dr10": 0.262, "hsc2": 0.168}
)
_LAYERS: Mapping[str, str] = MappingProxyType({"des": "des-dr1", "hsc": "hsc2"})
_GEOMETRIES: Mapping[str, Geometry] = MappingProxyType(
    {"des": Geometry(stretch=DES), "hsc": Geometry(fov_arcsec=21.5, stretch=HSC)}
)
_LAYER_OF_STRETCH: Mapping[str, str] = MappingProxyType({DES.name: "des-dr1", HSC.name: "hsc2"})
_DEFAULT_BANDS = "grz"
_CENTRE_TOLERANCE_PIX = 1.0
_GRID = 8
_DARK_LEVEL, _DARK_HIGHEST = 36, 64
_FLAT_RANGE, _FLAT_LEVEL = 2, 40
"""A cell of a picture whose channel varies no more, at or below blank sky (32 in our stretches), was never observed:
noise varies by more in all 404 real cut-outs that this was tried on but one, and saturated cores are white."""

_LONGEST_NAME = 120


def page_url(ra_deg: float, dec_deg: float, stretch: str) -> str:
    """Where people see this position, marked, in the survey whose stretch this is (else in the Legacy Surveys)."""
    at = f"{ra_deg:.6f}", f"{dec_deg:.6f}"
    layer = _LAYER_OF_STRETCH.get(stretch, "ls-dr10")
    return f"{URL}?ra={at[0]}&dec={at[1]}&layer={layer}&zoom=15&mark={at[0]},{at[1]}"


class BlankError(InputError):
    """The answer is an image, of a place that was not observed: asking again gives the same."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, the same for all objects of one output folder."""

    url: str
    survey: str
    format: str
    layer: str
    zoom: int | None
    pixscale: float | None
    size: int
    bands: str | None

    @property
    def address(self) -> str:
        return f"{self.url}/{self.format}-cutout"

    @property
    def pixel_scale_arcsec(self) -> float:
        if self.zoom is None:
            assert self.pixscale is not None
            return self.pixscale
        return float(_NATIVE_SCALE_ARCSEC[self.layer] * 2.0 ** (_NATIVE_ZOOM - self.zoom))

    @property
    def fov_arcsec(self) -> float:
        return self.size * self.pixel_scale_arcsec

    @property
    def geometry(self) -> Geometry:
        """Field, stretch and bands of a network for this survey."""
        return _GEOMETRIES[self.survey]

    @property
    def suffix(self) -> str:
        return ".jpg" if self.format == "jpeg" else ".fits"

    def parameters(self, ra: float, dec: float) -> dict[str, str]:
        """The query of one object; what is not set is not sent."""
        given = {
            "ra": repr(float(ra)),
            "dec": repr(float(dec)),
            "layer": self.layer,
            "zoom": self.zoom,
            "pixscale": self.pixscale,
            "size": self.size,
            "bands": self.bands,
        }
        return {name: str(value) for name, value in given.items() if value is not None}

    def unusable(self) -> str | None:
        """Why a network cannot take these images as they are, or None."""
        bands = self.bands or _DEFAULT_BANDS
        if self.format == "jpeg" and self.layer != _LAYERS[self.survey]:
            return (
                f"pictures of layer {self.layer} may have another stretch than {self.geometry.stretch.name}; take fits"
            )
        if self.format == "jpeg":
            return None if bands == _DEFAULT_BANDS else f"pictures of bands {bands} are not those a network takes"
        lacking = set(self.geometry.bands) - set(bands)
        if lacking:
            return f"band {', '.join(sorted(lacking))} was not asked for"
        native = self.geometry.stretch.pixel_scale_arcsec
        if not same_scale(self.pixel_scale_arcsec, native):
            return f'the viewer gives flux per native pixel of {native:g}", at every scale: ask for that scale'
        return None


def request_of(settings: Fetch) -> Request:
    """The request that the settings describe.

    Without further settings, the paper's field: 256 pixels at zoom 15 as JPEG, 128 native pixels as FITS; 33.5" of DES,
    21.5" of HSC.

    Raises
    ------
    UsageError
        The pixel scale of the layer is not known, or the scale cannot be had.
    """
    layer = settings.layer or _LAYERS[settings.survey]
    as_jpeg = settings.format == "jpeg"
    zoom = settings.zoom
    if zoom is None and settings.pixscale_arcsec is None:
        zoom = _NATIVE_ZOOM + as_jpeg
    if zoom is not None and layer not in _NATIVE_SCALE_ARCSEC:
        raise UsageError(
            f"--layer {layer}: its native pixel scale is not known here (known: {', '.join(_NATIVE_SCALE_ARCSEC)}); "
            "give --pixscale-arcsec"
        )
    return Request(
        url=(settings.url or URL).rstrip("/"),
        survey=settings.survey,
        format=settings.format,
        layer=layer,
        zoom=zoom,
        pixscale=settings.pixscale_arcsec,
        size=settings.size_pix or (256 if as_jpeg else 128),
        bands=settings.bands or (None if as_jpeg else _DEFAULT_BANDS),
    )


def safe_name(object_id: int | str) -> str:
    """A file name, without suffix, for an identifier: different for different ones, inside the folder for all.

    ASCII letters, digits and ``.+-_`` stay, except where they would begin a hidden name; every other byte of the UTF-8
    text becomes ``=XX``. Names longer than 120 characters keep their beginning and end in ``~`` and 32 digits of a
    sha256.
    """
    text = str(object_id)
    raw = text.encode("utf-8", errors="surrogatepass")
    name = quote(raw, safe="+").replace("~", "%7E").replace("%", "=")
    if name.startswith((".", "_")):
        name = f"={ord(name[0]):02X}{name[1:]}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 33]}~{hashlib.sha256(raw).hexdigest()[:32]}"
    return name or "="


def inspect(body: bytes, content_type: str, request: Request, ra: float, dec: float) -> float:
    """Check that an answer is the image asked for; the share of it that was never observed.

    Raises
    ------
    BlankError
        It is an image of nothing, or of nothing at the object.
    InputError
        It is something else: a page, a damaged image, another size, place or bands.
    """
    wanted = "image/jpeg" if request.format == "jpeg" else "fits"
    if content_type and wanted not in content_type.lower() and "octet-stream" not in content_type.lower():
        raise InputError(f"the answer is {content_type}, not {request.format}: {_beginning(body)}")
    if request.format == "jpeg":
        pixels = decode_jpeg(body, request)
        if channel := missing_channel(pixels):
            raise BlankError(f"blank: the layer has no data there in at least one band (channel {channel})")
        return _check_unobserved(unobserved_cells(pixels))
    tile = decode_fits(body, request, ra, dec)
    return _check_unobserved(np.asarray(~tile.valid.all(axis=0)))


def _beginning(body: bytes) -> str:
    """The start of an error page, as text on one line."""
    text = re.sub(r"<[^>]*>", " ", body[:2000].decode("utf-8", errors="replace"))
    return " ".join(text.split())[:80] or "empty"


def _check_unobserved(unobserved: NDArray[np.bool_]) -> float:
    """Share of an (H, W) mask; a `BlankError` where it is most of the image or all of the middle."""
    share = float(unobserved.mean())
    middle = tuple(slice((3 * side) // 8, -((-5 * side) // 8)) for side in unobserved.shape)
    if share >= 1:
        raise BlankError("blank: the layer has no data there in at least one band")
    if share > BLANK_SHARE:
        raise BlankError(f"blank: {share:.0%} of the field was never observed")
    if unobserved[middle].all():
        raise BlankError("blank: the object itself was never observed")
    return share


def decode_jpeg(body: bytes, request: Request) -> NDArray[np.uint8]:
    """The picture, uint8 (S, S, 3); an `InputError` where it is damaged or of another size."""
    try:
        with Image.open(io.BytesIO(body), formats=("JPEG",)) as picture:
            shape = (picture.height, picture.width, len(picture.getbands()))
            if shape != (request.size, request.size, 3):
                raise InputError(f"the picture is {shape}; {(request.size, request.size, 3)} was asked for")
            return np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the answer is no readable JPEG: {error}; it begins {_beginning(body)!r}") from error


def unobserved_cells(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Cells of an 8 x 8 grid over a picture (S, S, 3) without noise in at least one channel, at or below blank sky."""
    edges = np.linspace(0, len(pixels), min(_GRID, len(pixels)) + 1).astype(int)
    spans = [slice(start, end) for start, end in itertools.pairwise(edges)]
    unobserved = np.zeros((len(spans), len(spans)), bool)
    for row, column in np.ndindex(unobserved.shape):
        cell = pixels[spans[row], spans[column]].reshape(-1, 3)
        flat = (np.ptp(cell, axis=0) <= _FLAT_RANGE) & (cell.max(axis=0) <= _FLAT_LEVEL)
        unobserved[row, column] = flat.any()
    return unobserved


def missing_channel(pixels: NDArray[np.uint8]) -> str | None:
    """The channel R, G or B of a picture (S, S, 3) that shows nothing where the others shine, or None.

    The stretch draws an unobserved band at blank sky or below, the more so where other bands are bright; colours bleed
    a little in a JPEG. Of the 404 real cut-outs two are such, both known to lack a band; the mean of the others over
    the brightest hundredth is 44 or more. A field of nothing but noise cannot be told apart this way.
    """
    flat = pixels.reshape(-1, 3).astype(np.float64)
    count = max(len(flat) // 100, 1)
    brightest = np.argpartition(flat.sum(axis=1), -count)[-count:]
    dark = flat[brightest].mean(axis=0) <= _DARK_LEVEL
    dark &= np.percentile(flat, 99.9, axis=0) <= _DARK_HIGHEST
    return next((name for name, is_dark in zip("RGB", dark, strict=True) if is_dark), None)


def decode_fits(body: bytes, request: Request, ra: float, dec: float) -> Tile:
    """The planes asked for as a small tile, in the order of the request's bands.

    Raises
    ------
    BlankError
        The layer does not reach there.
    InputError
        No FITS image, damaged, or of another size, scale, place or bands.
    """
    bands = request.bands or ""
    data, header = _first_image(body)
    data = data[None] if data.ndim == 2 else data
    stated = str(header.get("BANDS", "")).strip()
    if stated != bands:
        raise InputError(f"the planes are bands {stated or '(none stated)'}; {bands} were asked for")
    if data.shape != (len(bands), request.size, request.size):
        raise InputError(f"the image is {data.shape}; {(len(bands), request.size, request.size)} was asked for")
    wcs = celestial_wcs(header, "the answer")
    scale = pixel_scale_arcsec(wcs)
    if not same_scale(scale, request.pixel_scale_arcsec):
        raise InputError(f'the image has {scale:.4f}"/px; {request.pixel_scale_arcsec:.4f}"/px was asked for')
    x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
    away = max(abs(float(x) - (request.size - 1) / 2), abs(float(y) - (request.size - 1) / 2))
    if not away <= _CENTRE_TOLERANCE_PIX:
        raise InputError(f"the image is of another place: its centre is {away:.1f} pixels from the object")
    valid = np.isfinite(data) & (data != 0)
    return Tile(
        tile_id="",
        bands=tuple(bands),
        flux=np.where(valid, data, 0).astype(np.float32),
        valid=valid,
        saturated=np.zeros(data.shape, bool),
        wcs=wcs,
        pixel_scale_arcsec=scale,
    )


def _first_image(body: bytes) -> tuple[NDArray[np.float64], fits.Header]:
    """Pixels and header of the first HDU that holds an image; a `BlankError` where none does."""
    with open_fits(io.BytesIO(body), "the answer") as hdus:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for hdu in hdus_of(hdus, "the answer"):
                    if hdu.is_image and hdu.header.get("NAXIS", 0) in (2, 3):
                        return np.asarray(hdu.data, dtype=np.float64), hdu.header
        except Exception as error:  # astropy and its decompressors raise many types on damaged data
            raise InputError(f"the answer is a damaged FITS file: {error}") from error
    raise BlankError("blank: the layer does not reach there")
