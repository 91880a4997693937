"""The tables we write: columns, their units and meaning, and the flag bits. Imports nothing of ours.

CONTRACT.md fixes the names and types; readers, writers and documentation take them from here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

IMAGE_SHAPE = (64, 64, 3)
"""Rows from north to south, columns from east to west (as a picture is seen), channels R, G, B = z, r, g."""
SHAPE_TEXT = "64,64,3"
IMAGE_BYTES = 64 * 64 * 3


class FlagKind(enum.Enum):
    FATAL = "fatal"
    """The row keeps its place; its score columns are null."""
    INFORMATIONAL = "informational"
    """The row is scored all the same."""


class Flag(enum.Enum):
    """One table of flag bits: position, kind, text. Written to `flags` (int32) of every row."""

    NO_IMAGE = (0, FlagKind.FATAL, "no image was given for this object")
    OFF_TILE = (1, FlagKind.FATAL, "the position lies on no tile of the input")
    MISSING_BAND = (2, FlagKind.FATAL, "the tile lacks a band that the network needs")
    ALL_MASKED = (3, FlagKind.FATAL, "no valid pixel in at least one band")
    BAD_SHAPE = (4, FlagKind.FATAL, "the image has another shape or dtype than the network takes")
    BAD_POSITION = (5, FlagKind.FATAL, "ra or dec is NaN or out of range")
    DUPLICATE_ID = (6, FlagKind.FATAL, "an earlier row of the same work unit has this object_id")
    BAD_SCORE = (7, FlagKind.FATAL, "the network returned a value that is not finite")
    PARTIAL_FIELD = (16, FlagKind.INFORMATIONAL, "the field is smaller than the network's; edges are reflected")
    SATURATED = (17, FlagKind.INFORMATIONAL, "the field holds saturated pixels")
    SOME_MASKED = (18, FlagKind.INFORMATIONAL, "some pixels are masked or NaN; they were given as blank sky")
    RESAMPLED = (19, FlagKind.INFORMATIONAL, "the pixels were resampled to the network's scale")
    OUT_OF_DOMAIN = (20, FlagKind.INFORMATIONAL, "the image is unlike those the network was trained on")
    NO_POSITION = (21, FlagKind.INFORMATIONAL, "no position was given; the row cannot be placed on the sky")

    def __init__(self, position: int, kind: FlagKind, text: str) -> None:
        self.bit = 1 << position
        self.kind = kind
        self.text = text

    @classmethod
    def names(cls, flags: int) -> list[str]:
        """Names of the bits set in `flags`."""
        return [flag.name for flag in cls if flags & flag.bit]


FATAL_BITS = sum(flag.bit for flag in Flag if flag.kind is FlagKind.FATAL)


def is_fatal(flags: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Rows whose score columns must be null, shape (N,)."""
    return np.asarray((flags & FATAL_BITS) != 0, dtype=np.bool_)


def count_flags(flags: NDArray[np.int32]) -> dict[str, int]:
    """How many rows carry each flag, those that occur only."""
    counts = {flag.name: int(np.count_nonzero(flags & flag.bit)) for flag in Flag}
    return {name: count for name, count in counts.items() if count}


def _field(name: str, kind: pa.DataType, description: str, *, unit: str = "", ucd: str = "") -> pa.Field:
    metadata = {"description": description, "unit": unit, "ucd": ucd}
    return pa.field(name, kind, metadata={key: value for key, value in metadata.items() if value})


def id_field(id_type: pa.DataType) -> pa.Field:
    return _field("object_id", id_type, "identifier as given with the detection", ucd="meta.id;meta.main")


RA = _field("ra", pa.float64(), "right ascension, ICRS", unit="deg", ucd="pos.eq.ra;meta.main")
DEC = _field("dec", pa.float64(), "declination, ICRS", unit="deg", ucd="pos.eq.dec;meta.main")
HEALPIX = _field("_healpix_29", pa.int64(), "HEALPix index, order 29, NESTED", ucd="pos.healpix")
LABEL = _field("label", pa.int8(), "1 low-surface-brightness galaxy, 0 artifact", ucd="meta.code.class")


def score_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of every score table; `id_type` is int64 or string."""
    return pa.schema(
        [
            id_field(id_type),
            RA,
            DEC,
            _field("logit", pa.float32(), "network output before calibration"),
            _field(
                "p_lsbg",
                pa.float32(),
                "calibrated probability of a low-surface-brightness galaxy at a prevalence of 0.5",
                ucd="stat.probability",
            ),
            _field(
                "p_lsbg_err",
                pa.float32(),
                "1-sigma uncertainty of p_lsbg; null where the checkpoint states none",
                ucd="stat.error;stat.probability",
            ),
            _field("flags", pa.int32(), "bit mask, see the flag table", ucd="meta.code.qual"),
            _field("unit", pa.string(), "work unit that scored the row", ucd="meta.id"),
            _field("run", pa.string(), "run that scored the row", ucd="meta.id"),
        ]
    )


def image_field(fov_arcsec: float, stretch: str, bands: Iterable[str]) -> pa.Field:
    """The `image` column: uint8 (64, 64, 3) as fixed-size binary.

    A uint8 tensor column would become INT32 in Parquet: 4 times the bytes, 11 times the CPU.
    """
    metadata = {
        "shape": SHAPE_TEXT,
        "dtype": "uint8",
        "fov_arcsec": repr(float(fov_arcsec)),
        "stretch": stretch,
        "bands": ",".join(bands),
    }
    return pa.field("image", pa.binary(IMAGE_BYTES), metadata=metadata)


def cutout_schema(id_type: pa.DataType, image: pa.Field, *, labelled: bool) -> pa.Schema:
    """Columns of a cut-out shard; ra and dec are null where no position is known."""
    columns = [id_field(id_type), RA, DEC, image, _field("flags", pa.int32(), "bit mask", ucd="meta.code.qual")]
    return pa.schema([*columns, LABEL] if labelled else columns)


def image_metadata(schema: pa.Schema) -> dict[str, str]:
    """The metadata of the `image` column as text, empty where there is none."""
    raw: dict[Any, Any] = schema.field("image").metadata or {}
    return {key.decode(): value.decode() for key, value in raw.items()}
