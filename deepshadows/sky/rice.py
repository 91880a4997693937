"""RICE-compressed rows decoded by C of our own where there is a compiler. No Ray, no torch.

The bits are those of astropy at several times its rate (see RESULTS.md), and other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deepshadows import native
from deepshadows.outcomes import InputError

SLACK_BYTES = 1024
"""What must follow the compressed bytes: the decoder looks ahead."""
_DITHERS = {"NO_DITHER": -1, "SUBTRACTIVE_DITHER_1": 1, "SUBTRACTIVE_DITHER_2": 2}
_FLAGS = ("-ffp-contract=off",)
"""A product and a sum in one step would round once where astropy rounds twice."""


@cache
def _library() -> ctypes.CDLL | None:
    """The decoder; None where nothing compiles it."""
    try:
        library = native.load((Path(__file__).with_name("rice.c"),), _FLAGS)
    except native.CannotCompileError:
        return None
    library.rice_tiles.restype = ctypes.c_int64
    return library


@cache
def _randoms() -> NDArray[np.float32]:
    """The random numbers of the FITS standard's dither."""
    library = _library()
    assert library is not None
    randoms = np.empty(10_000, np.float32)
    library.rice_randoms(_pointer(randoms))
    return randoms


def _pointer(array: NDArray[Any] | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


@dataclass(frozen=True)
class Rice:
    """How the tiles of one image are compressed."""

    bytes_a_pixel: int
    block: int
    dither: int
    seed: int
    quantised: bool
    blank: int | None
    """What stands for NaN in all tiles; a column ZBLANK states it tile by tile."""

    @classmethod
    def of(cls, header: fits.Header, columns: tuple[str, ...]) -> Rice | None:
        """None where it is not for us: another compression, scaled integers, double precision, or no compiler."""
        settings = {
            str(header[key]).strip(): header.get(f"ZVAL{key.removeprefix('ZNAME')}")
            for key in header
            if key.startswith("ZNAME")
        }
        quantised = {"ZSCALE", "ZZERO"} <= set(columns)
        bytes_a_pixel, block = settings.get("BYTEPIX", 4), settings.get("BLOCKSIZE", 32)
        plain = (header.get("BSCALE", 1), header.get("BZERO", 0)) == (1, 0)
        dither, seed = _DITHERS.get(header.get("ZQUANTIZ", "NO_DITHER")), header.get("ZDITHER0", 0)
        blanks = "ZBLANK" in columns or "ZBLANK" in header or "BLANK" in header
        pixels = header.get("ZBITPIX") == -32 if quantised else header.get("ZBITPIX") in (16, 32) and not blanks
        fits_us = (
            header.get("ZCMPTYPE") in ("RICE_1", "RICE_ONE")
            and "COMPRESSED_DATA" in columns
            and (bytes_a_pixel == 4 or (bytes_a_pixel == 2 and not quantised))
            and block in (16, 32)
            and (plain and pixels)
            and (not quantised or dither == -1 or (dither is not None and isinstance(seed, int) and seed > 0))
        )
        if not fits_us or _library() is None:
            return None
        blank = header.get("ZBLANK", header.get("BLANK"))
        return cls(
            bytes_a_pixel=bytes_a_pixel,
            block=block,
            dither=-1 if dither is None else dither,
            seed=seed if isinstance(seed, int) else 0,
            quantised=quantised,
            blank=blank if isinstance(blank, int) else None,
        )

    def decode(
        self, table: NDArray[Any], heap: NDArray[np.uint8], first: int, pixels: int, shape: tuple[int, int], where: str
    ) -> NDArray[Any]:
        """Rows of pixels.

        Parameters
        ----------
        table : structured (T,)
            Rows of the table, descriptors relative to `heap`.
        heap : uint8
            Compressed bytes, `SLACK_BYTES` of anything behind them.
        first : int
            Number of the first tile.
        pixels : int
            Of a tile; the last may have fewer.
        shape : tuple of int
            Of the result.
        where : str
            What an error names.

        Raises
        ------
        InputError
            The bytes of a tile end too early.
        """
        library = _library()
        assert library is not None
        size, offset = (np.ascontiguousarray(table["COMPRESSED_DATA"][:, part], np.int64) for part in (0, 1))
        held = len(heap) - SLACK_BYTES
        if ((offset < 0) | (size < 0) | (size > held) | (offset > held - size)).any():  # their sum may overflow
            raise InputError(f"{where} cannot be read, truncated or damaged: its table of tiles points outside")
        total = shape[0] * shape[1]
        out = np.empty(shape, np.float32) if self.quantised else None
        integers = np.empty(pixels if self.quantised else shape, np.int32)
        scale, zero = (
            np.ascontiguousarray(table[name], np.float64) if self.quantised else None for name in ("ZSCALE", "ZZERO")
        )
        blank = None
        if "ZBLANK" in (table.dtype.names or ()):
            blank = np.ascontiguousarray(table["ZBLANK"], np.int32)
        elif self.blank is not None:
            blank = np.full(len(table), self.blank, np.int32)
        bad = library.rice_tiles(
            _pointer(heap),
            _pointer(offset),
            _pointer(size),
            ctypes.c_int64(pixels),
            ctypes.c_int64(total),
            self.bytes_a_pixel,
            self.block,
            _pointer(integers),
            _pointer(scale),
            _pointer(zero),
            self.dither,
            ctypes.c_int64(first + self.seed - 1),
            int(blank is not None),
            _pointer(blank),
            _pointer(_randoms()),
            _pointer(out),
        )
        if bad >= 0:
            raise InputError(f"{where} cannot be read, truncated or damaged: the bytes of tile {first + bad} end early")
        return integers if out is None else out
