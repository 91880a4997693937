"""A server that speaks the parameters of the Legacy Surveys viewer, and misbehaves when told to. Loopback only.

The sky it shows is a function of ra and dec: one blob on each object asked for, a fainter one 6" north and 6" east of
it, a little noise.
"""

from __future__ import annotations

import io
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image

from deepshadows.sky.stretch import DES, HSC

NATIVE = {"des-dr1": 0.262, "ls-dr9": 0.262, "hsc2": 0.168}
BANDS = "grz"
LARGEST = 3000
BLOBS = ((0.0, 0.0, 0.3), (6.0, 6.0, 0.1))
"""North and east of the object in arcsec, peak flux."""
HOLD_S = 20.0


@dataclass(frozen=True)
class Received:
    """One request, by the clock of the server."""

    at: float
    path: str
    parameters: dict[str, str]


@dataclass
class ViewerServer:
    """Serves while used as a context.

    Attributes
    ----------
    behaviour : dict
        By the text of ra: what to answer to the first request, the second ...; the last one stays. See `_Handler`.
    files : dict
        Plain files by path.
    received : list of Received
        All requests so far.
    released : threading.Event
        Ends what is held.
    """

    behaviour: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    retry_after: str = "1"
    _seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> ViewerServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.viewer = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/viewer"

    def next_behaviour(self, path: str, parameters: dict[str, str]) -> str:
        with self._guard:
            self.received.append(Received(time.monotonic(), path, parameters))
            key = parameters.get("ra", path)
            told = self.behaviour.get(key, ["good"])
            number = min(self._seen[key], len(told) - 1)
            self._seen[key] += 1
        return told[number]

    def asked_for(self) -> list[str]:
        """The ra of each request, in order."""
        return [entry.parameters["ra"] for entry in self.received]


def scale_of(parameters: dict[str, str]) -> float:
    """As the viewer has it: pixscale wins over zoom."""
    native = NATIVE[parameters["layer"]]
    if "pixscale" in parameters:
        return float(parameters["pixscale"])
    return float(native * 2.0 ** (14 - int(parameters.get("zoom", 14))))


def flux(ra: float, dec: float, size: int, scale: float, sigma: float = 0.004) -> NDArray[np.float32]:
    """Nanomaggies per native pixel, float32 (3, size, size), rows from south to north, columns from east to west."""
    offset = (np.arange(size) - (size - 1) / 2) * scale
    north, east = offset[:, None], -offset[None, :]
    plane = sum(peak * np.exp(-((north - n) ** 2 + (east - e) ** 2) / 8) for n, e, peak in BLOBS)
    noise = np.random.default_rng([int(ra * 1e6), int((dec + 90) * 1e6)]).normal(0, sigma, (3, size, size))
    return (np.asarray(plane) + noise).astype(np.float32)


def picture(planes: NDArray[np.float32], layer: str) -> bytes:
    stretch = HSC if layer == "hsc2" else DES
    pixels = stretch.apply(np.moveaxis(planes[::-1], 0, -1)[::-1], ("z", "r", "g"))
    return as_jpeg(pixels)


def as_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def cube(planes: NDArray[np.float32] | None, ra: float, dec: float, scale: float, bands: str) -> bytes:
    header = fits.Header({"SURVEY": "DES", "VERSION": "DR1", "IMAGETYP": "IMAGE", "BANDS": bands})
    size = 0 if planes is None else planes.shape[-1]
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec})
    header.update({"CRPIX1": (size + 1) / 2, "CRPIX2": (size + 1) / 2})
    header.update({"CD1_1": -scale / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale / 3600})
    sink = io.BytesIO()
    fits.PrimaryHDU(planes, header).writeto(sink)
    return sink.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """Answers `good`, or as its words say."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        try:
            self._answer()
        except ConnectionError:  # the client has had enough
            self.close_connection = True

    def _answer(self) -> None:
        viewer: ViewerServer = self.server.viewer  # type: ignore[attr-defined]
        split = urlsplit(self.path)
        parameters = dict(parse_qsl(split.query))
        told = viewer.next_behaviour(split.path, parameters)
        if told == "held":
            viewer.released.wait(HOLD_S)
            self.close_connection = True
        elif told == "cut connection":
            self.close_connection = True
        elif told in ("429", "503"):
            self._send(b"slow down", "text/plain", int(told), {"Retry-After": viewer.retry_after})
        elif told.isdigit():
            self._send(b"<html><h1>Error</h1></html>", "text/html", int(told))
        elif told == "html":
            self._send(b"<html><h1>Maintenance</h1></html>", "text/html")
        elif split.path.startswith("/viewer/"):
            self._image(viewer, parameters, told, as_fits=split.path.endswith("/fits-cutout"))
        elif split.path in viewer.files:
            self._file(viewer.files[split.path], told)
        else:
            self._send(b"not there", "text/plain", 404)

    def _file(self, body: bytes, told: str) -> None:
        if told == "cut off":
            self._begin("text/plain", 200, {"Content-Length": str(len(body)), "Connection": "close"})
            self.wfile.write(body[:-3])
        else:
            self._send(body, "text/plain")

    def _image(self, viewer: ViewerServer, parameters: dict[str, str], told: str, *, as_fits: bool) -> None:
        ra, dec = float(parameters["ra"]), float(parameters["dec"])
        size, scale = min(int(parameters.get("size", 256)), LARGEST), scale_of(parameters)
        bands = parameters.get("bands", BANDS)
        bands = bands if set(bands) <= set(BANDS) else BANDS
        size = size // 2 if told == "small" else size
        planes = flux(ra, dec, size, scale, 0.001 if parameters["layer"] == "hsc2" else 0.004)
        if told == "blank":
            planes[:] = 0
        elif told == "no z":
            planes[2] = 0
        elif told == "half blank":
            planes[:, :, : 3 * size // 4] = 0
        elif told == "corner blank":
            planes[:, : size // 4, : size // 4] = 0
        if as_fits:
            planes = planes[[BANDS.index(band) for band in bands]]
            centre = (ra + 0.1, dec) if told == "elsewhere" else (ra, dec)
            body = cube(None if told == "no overlap" else planes, *centre, scale, bands)
        else:
            body = b"<html>Oops</html>" if told == "page as picture" else picture(planes, parameters["layer"])
        kind = "image/fits" if as_fits else "image/jpeg"
        if told in ("cut off", "trickle"):
            self._begin(kind, 200, {"Content-Length": str(len(body)), "Connection": "close"})
            if told == "cut off":
                self.wfile.write(body[: len(body) // 2])
                return
            for byte in body[:400]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if viewer.released.wait(0.05):
                    return
        elif told == "ends early":
            self._begin(kind, 200, {"Connection": "close"})
            self.wfile.write(body[: len(body) // 2])
        else:
            self._send(body, kind)

    def _begin(self, kind: str, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = "Connection" in headers

    def _send(self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._begin(kind, status, {**(headers or {}), "Content-Length": str(len(body))})
        self.wfile.write(body)
