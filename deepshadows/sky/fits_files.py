"""FITS images by rows: what their headers say, and the pixels of some rows without reading others. No Ray, no torch.

Plain images are read by byte ranges. Tile-compressed ones (fpack) are decoded row of tiles by row of tiles: by `rice`,
or the part of the table and of its heap that belongs to the wanted rows becomes a small FITS file, which astropy
decodes. What is laid out otherwise (gzip, scaled integers, compressed cubes) is read whole.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import threading
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, StorageError
from deepshadows.sky.rice import SLACK_BYTES, Rice

MAX_TILE_PIXELS = 40_000 * 40_000
"""A header that declares more is not believed."""
_GZIP = b"\x1f\x8b"
_DITHER_SEEDS = 10_000
_ELEMENT_BYTES = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "E": 4, "K": 8, "D": 8}


@contextlib.contextmanager
def fits_errors(where: str) -> Iterator[None]:
    """Turn what damaged headers make astropy raise, which has no common base, into an `InputError`.

    A lack of memory or of the system's own is no damage: it stops the run.
    """
    try:
        yield
    except (Failure, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise StorageError(f"{where}: {error}") from error
        raise InputError(f"{where}: damaged FITS file: {error}") from error
    except Exception as error:
        raise InputError(f"{where}: damaged FITS file: {type(error).__name__}: {error}") from error


def open_fits(source: Any, where: str, **options: Any) -> fits.HDUList:
    """An HDU list from a file-like object; what is not FITS is an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fits.open(source, memmap=False, lazy_load_hdus=True, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: not a FITS file: {error}") from error


def hdus_of(hdus: fits.HDUList, where: str) -> Iterator[Any]:
    """The HDUs one by one; an `InputError` where one begins within an earlier one.

    A header with a negative PCOUNT leads astropy back, and round for ever.
    """
    end = 0
    for number, hdu in enumerate(hdus):
        place = hdu.fileinfo()
        if place["hdrLoc"] < end:
            raise InputError(f"{where}: damaged FITS file: HDU {number} begins within an earlier one")
        end = place["datLoc"]
        yield hdu


def unzipped(source: Any) -> Any:
    """A file-like object as it is, or its content where it is gzipped: as much of it as is read."""
    zipped = source.read(len(_GZIP)) == _GZIP
    source.seek(0)
    return gzip.GzipFile(fileobj=source) if zipped else source


class Image(Protocol):
    """One plane of an HDU."""

    @property
    def header(self) -> fits.Header:
        """Keywords of the image; of a compressed one, those of its table, which hold them too."""

    @property
    def slow_start(self) -> bool:
        """Whether each reading of rows takes long before its first row."""

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Pixels of rows `first` to `last` as stored, (last - first, W); an `InputError` where they are damaged."""


class FitsFile:
    """One FITS object of which some HDUs are read. Its images may be read by several threads."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url, self._size_bytes = url, size_bytes
        self._zipped = False
        self._lock = threading.Lock()

    def images(self, numbers: list[int | None], shape: tuple[int, int], plane: int | None) -> list[Image | None]:
        """The plane of each of these HDUs, of `shape`; None stays None.

        Raises
        ------
        InputError
            There is no such HDU, it has another shape, or is cut off.
        """
        with (
            warnings.catch_warnings(),
            storage.open_reader(self._url, size_bytes=self._size_bytes) as reader,
        ):
            warnings.simplefilter("ignore")
            content = unzipped(reader)
            self._zipped = content is not reader
            hdus = open_fits(content, self._url, disable_image_compression=True)
            return [None if number is None else self._image(hdus, number, shape, plane) for number in numbers]

    def _image(self, hdus: fits.HDUList, number: int, shape: tuple[int, int], plane: int | None) -> Image:
        try:
            hdu = hdus[number]
        except IndexError as error:
            raise InputError(f"{self._url}: has no HDU {number}; truncated or damaged") from error
        where = f"{self._url}: HDU {number}"
        header = hdu.header
        compressed = bool(header.get("ZIMAGE"))
        key = "ZNAXIS" if compressed else "NAXIS"
        declared = tuple(int(header[f"{key}{axis}"]) for axis in range(int(header[key]), 0, -1))
        if math.prod(declared) > MAX_TILE_PIXELS:
            raise InputError(f"{where} declares {declared} pixels; more than any tile has")
        found = declared[1:] if plane is not None and len(declared) == 3 else declared
        if found != shape or (plane or 0) >= (declared[0] if len(declared) == 3 else 1 << 30):
            raise InputError(f"{where} has shape {declared}, expected {shape}")
        if self._zipped:
            return _Whole(self, number, header, shape, plane)
        start = hdu.fileinfo()["datLoc"]
        if compressed and len(declared) == 2 and header.get("ZTILE1", shape[1]) == shape[1]:
            return _Compressed(self._url, self._size_bytes, where, hdu, start, shape)
        scaled = (header.get("BSCALE", 1), header.get("BZERO", 0)) != (1, 0) or "BLANK" in header
        if compressed or scaled:
            return _Whole(self, number, header, shape, plane)
        bits = int(header["BITPIX"])
        dtype = np.dtype(f">{'f' if bits < 0 else 'i' if bits > 8 else 'u'}{abs(bits) // 8}")
        start += dtype.itemsize * math.prod(shape) * (plane or 0 if len(declared) == 3 else 0)
        if start + dtype.itemsize * math.prod(shape) > self._size_bytes:
            raise InputError(
                f"{where} cannot be read, truncated or damaged: {self._size_bytes} bytes are too few for {declared}"
            )
        return _Plain(self._url, header, start, dtype, shape[1])

    @cached_property
    def _hdus(self) -> fits.HDUList:
        return open_fits(unzipped(io.BytesIO(storage.read(self._url))), self._url)

    def whole(self, number: int) -> NDArray[Any]:
        """All pixels of an HDU."""
        with self._lock:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return np.asarray(self._hdus[number].data)
            except (Failure, MemoryError):
                raise
            except Exception as error:  # astropy and its decompressors raise many types on damaged data
                raise InputError(f"{self._url}: HDU {number} cannot be read, truncated or damaged: {error}") from error


class _Plain:
    """Pixels that lie in the object as they are."""

    slow_start = False

    def __init__(self, url: str, header: fits.Header, start: int, dtype: np.dtype[Any], width: int) -> None:
        self.header = header
        self._url, self._start, self._dtype, self._width = url, start, dtype, width

    def rows(self, first: int, last: int) -> NDArray[Any]:
        row_bytes = self._width * self._dtype.itemsize
        data = storage.read_range(self._url, self._start + first * row_bytes, self._start + last * row_bytes)
        return np.frombuffer(data, self._dtype).reshape(last - first, self._width)


class _Whole:
    """An image that can only be read as one; it stays in memory."""

    slow_start = False

    def __init__(
        self, file: FitsFile, number: int, header: fits.Header, shape: tuple[int, int], plane: int | None
    ) -> None:
        self.header = header
        self._file, self._number, self._shape, self._plane = file, number, shape, plane

    @cached_property
    def _pixels(self) -> NDArray[Any]:
        data = self._file.whole(self._number)
        data = data[self._plane] if self._plane is not None and data.ndim == 3 else data
        if data.shape != self._shape:
            raise InputError(f"HDU {self._number} has shape {data.shape}, expected {self._shape}")
        return data

    def rows(self, first: int, last: int) -> NDArray[Any]:
        return self._pixels[first:last]


class _Compressed:
    """A tile-compressed image whose tiles span whole rows."""

    def __init__(self, url: str, size_bytes: int, where: str, hdu: Any, start: int, shape: tuple[int, int]) -> None:
        self.header = hdu.header
        self._url, self._size_bytes, self._where, self._start, self._shape = url, size_bytes, where, start, shape
        self._tile_rows = int(self.header.get("ZTILE2", 1))
        self._row = hdu.columns.dtype.newbyteorder(">")
        self._descriptors = {
            column.name: _ELEMENT_BYTES[column.format.lstrip("01")[1]]
            for column in hdu.columns
            if column.format.lstrip("01")[:1] in ("P", "Q")
        }
        self._rice = Rice.of(self.header, self._row.names)
        if self._tile_rows < 1 or self._row.itemsize != self.header["NAXIS1"]:
            raise InputError(f"{where} cannot be read, truncated or damaged: its table of tiles")
        if start + self._row.itemsize * int(self.header["NAXIS2"]) + int(self.header["PCOUNT"]) > size_bytes:
            raise InputError(f"{where} cannot be read, truncated or damaged: {size_bytes} bytes are too few")

    @property
    def slow_start(self) -> bool:
        return self._rice is None

    def rows(self, first: int, last: int) -> NDArray[Any]:
        low, high = first // self._tile_rows, -(-last // self._tile_rows)
        offset = low * self._tile_rows
        with fits_errors(self._where):
            table, heap = self._part(low, high)
            if self._rice is not None and (table["COMPRESSED_DATA"][:, 0] > 0).all():
                shape = min(high * self._tile_rows, self._shape[0]) - offset, self._shape[1]
                data = self._rice.decode(table, heap, low, self._tile_rows * self._shape[1], shape, self._where)
            else:
                with fits.open(io.BytesIO(self._small_file(table, heap, low)), memmap=False) as hdus:
                    data = np.asarray(hdus[1].data)
        return data[first - offset : last - offset]

    def _part(self, low: int, high: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Rows `low` to `high` of the table, and what they point to of the heap, with some bytes behind it."""
        row_bytes = self._row.itemsize
        table = np.frombuffer(self._read(self._start + low * row_bytes, (high - low) * row_bytes), self._row).copy()
        begin, end = 1 << 62, 0
        for name, size in self._descriptors.items():
            count, offset = (table[name][:, part].astype(np.int64) for part in (0, 1))
            used = count > 0
            begin = min(begin, offset[used].min(initial=begin))
            end = max(end, (offset + count * size)[used].max(initial=end))
        begin = min(begin, end)
        for name in self._descriptors:
            table[name][:, 1] = np.where(table[name][:, 0] > 0, table[name][:, 1] - begin, 0)
        heap = self._start + int(self.header.get("THEAP", row_bytes * self.header["NAXIS2"]))
        found = np.zeros(int(end - begin) + SLACK_BYTES, np.uint8)
        found[: int(end - begin)] = self._read(heap + int(begin), int(end - begin))
        return table, found

    def _small_file(self, table: NDArray[Any], heap: NDArray[np.uint8], low: int) -> bytes:
        """A FITS file of these tiles alone; `low` is the number of the first."""
        data = table.tobytes() + heap.tobytes()
        header: fits.Header = self.header.copy()
        header["NAXIS2"], header["PCOUNT"] = len(table), len(heap)
        header["ZNAXIS2"] = min((low + len(table)) * self._tile_rows, self._shape[0]) - low * self._tile_rows
        header.remove("THEAP", ignore_missing=True)
        if "ZDITHER0" in header:  # the seed of a tile is that of the first and its number
            header["ZDITHER0"] = (header["ZDITHER0"] + low - 1) % _DITHER_SEEDS + 1
        return b"".join([_EMPTY_PRIMARY, header.tostring().encode(), data, bytes(-len(data) % 2880)])

    def _read(self, start: int, count: int) -> memoryview:
        if count < 0 or start < self._start or start + count > self._size_bytes:
            raise InputError(f"{self._where} cannot be read, truncated or damaged: its table of tiles points outside")
        return storage.read_range(self._url, start, start + count)


_EMPTY_PRIMARY = fits.PrimaryHDU().header.tostring().encode()
