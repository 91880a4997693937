"""Images as found into cut-outs as the network takes them; each one that cannot be used is listed with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from deepshadows.outcomes import InputError, UsageError
from deepshadows.schema import IMAGE_SHAPE, Flag
from deepshadows.settings import Cutouts as Settings
from deepshadows.sky.cutouts import Geometry, bring_to_field
from deepshadows.sky.images import arrays, files, hdf5, parquet
from deepshadows.sky.images.record import Image, Source
from deepshadows.sky.shards import Cutouts, positions
from deepshadows.sky.stretch import STRETCHES

_RED_TO_BLUE = "zirg"


def geometry_of(settings: Settings) -> Geometry:
    """Channels, stretch and field of the shards: the reddest band is red."""
    bands = tuple(band for band in _RED_TO_BLUE if band in settings.bands)
    if len(bands) != 3:
        raise UsageError(f"--bands {settings.bands}: three different bands are needed, such as grz or gri")
    if settings.stretch not in STRETCHES:
        raise UsageError(f"--stretch {settings.stretch}: not known; one of {', '.join(STRETCHES)}")
    return Geometry(stretch=STRETCHES[settings.stretch], bands=bands)


def read_images(source: Source, settings: Settings, geometry: Geometry) -> Iterator[Image]:
    """All images of a source, in its order.

    Raises
    ------
    InputError
        The source is damaged; what came before has been yielded.
    """
    match source.form:
        case "npz":
            return arrays.read_npz_images(source, geometry)
        case "npy":
            return arrays.read_npy_images(source)
        case "hdf5":
            return hdf5.read_hdf5_images(source, settings)
        case "parquet":
            return parquet.read_parquet_images(source, settings, geometry)
        case "pictures":
            return files.read_pictures(source)
        case "fits":
            return files.read_fits_images(source, settings, geometry)
        case _:
            return files.read_webdataset(source, settings)


@dataclass
class Conversion:
    """Turns images into cut-outs.

    Attributes
    ----------
    seen : int
        Images so far: those of the cut-outs and the rejects.
    rejects : list
        Identifier, where it was found, reason.
    """

    settings: Settings
    geometry: Geometry
    seen: int = 0
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    _ids: set[Any] = field(default_factory=set)
    _labelled: bool | None = None
    _id_kind: type | None = None

    def cutouts(self, images: Iterable[Image], rows: int) -> Iterator[Cutouts]:
        """Usable images, at most `rows` at a time; an error of `images` comes after those before it."""
        held: list[Image] = []
        try:
            for image in images:
                self.seen += 1
                try:
                    held.append(self._checked(image))
                except InputError as error:
                    self.rejects.append((str(image.object_id), image.where, str(error)))
                if len(held) == rows:
                    yield self._joined(held)
                    held = []
        except InputError:  # what the source gave before it broke off is kept
            if held:
                yield self._joined(held)
            raise
        if held:
            yield self._joined(held)

    def _checked(self, image: Image) -> Image:
        """The image in the network's field, its label 1, 0 or None; an `InputError` says why it cannot be used."""
        if image.reason or image.pixels is None:
            raise InputError(image.reason or f"{image.where}: no image")
        self._check_id(image)
        label = self._label(image)
        pixels, flags, shape = image.pixels, image.flags, image.pixels.shape
        if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or shape[0] != shape[1] or not shape[0]:
            raise InputError(f"{image.where}: {pixels.dtype} {shape}; uint8 (S, S, 3) is needed")
        fov = self.settings.fov_arcsec if image.fov_arcsec is None else image.fov_arcsec
        if fov is None or not 0 < fov < math.inf:
            raise InputError(f"{image.where}: no field of view is stated; give --fov-arcsec")
        brought, more = bring_to_field(pixels[None], np.array([fov]), self.geometry)
        ra, dec = (_number(value, image.where) for value in (image.ra, image.dec))
        self._ids.add(image.object_id)
        return Image(
            object_id=image.object_id,
            where=image.where,
            pixels=brought[0],
            label=label,
            ra=ra,
            dec=dec,
            flags=flags | int(more[0]),
        )

    def _check_id(self, image: Image) -> None:
        given = image.object_id
        kind = int if isinstance(given, int) and not isinstance(given, bool) else str
        if not isinstance(given, kind) or given == "" or (isinstance(given, int) and abs(given) >= 1 << 63):
            raise InputError(f"{image.where}: identifier {given!r}; a whole number of 64 bits or a text is needed")
        if given in self._ids:
            raise InputError(f"{image.where}: duplicate identifier: an earlier image has it too")
        self._id_kind = self._id_kind or kind
        if kind is not self._id_kind:
            raise InputError(f"{image.where}: identifier {given!r}: the others are of type {self._id_kind.__name__}")

    def _label(self, image: Image) -> int | None:
        """1 or 0; None where images have no labels. All of a source have one, or none has."""
        if self._labelled is None:
            self._labelled = image.label is not None
        if (image.label is not None) is not self._labelled:
            raise InputError(f"{image.where}: {'no label' if self._labelled else 'a label'}, unlike those before it")
        if image.label is None:
            return None
        whole = isinstance(image.label, float) and image.label.is_integer()
        text = str(int(image.label) if whole or isinstance(image.label, bool) else image.label).strip().lower()
        for label, names in ((1, self.settings.lsbg_class), (0, self.settings.artifact_class)):
            if text in {name.lower() for name in names}:
                return label
        raise InputError(f"{image.where}: label {text!r} is not known; see --lsbg-class and --artifact-class")

    def _joined(self, images: list[Image]) -> Cutouts:
        table = pa.table(
            {
                name: pa.array([getattr(image, name) for image in images], pa.float64(), from_pandas=True)
                for name in ("ra", "dec")
            }
        )
        ra, dec, position_flags = positions(table, images[0].where)
        flags = np.array([image.flags for image in images], np.int32)
        known = np.int32(Flag.NO_POSITION.bit | Flag.BAD_POSITION.bit)
        return Cutouts(
            object_id=pa.array(
                [image.object_id for image in images], pa.int64() if self._id_kind is int else pa.string()
            ),
            ra=ra,
            dec=dec,
            images=np.stack([image.pixels for image in images if image.pixels is not None]).reshape(-1, *IMAGE_SHAPE),
            flags=(flags & ~known) | position_flags,
            label=np.array([image.label for image in images], np.int8) if self._labelled else None,
            fov_arcsec=self.geometry.fov_arcsec,
            stretch=self.geometry.stretch.name,
            bands=self.geometry.bands,
        )


def _number(value: Any, where: str) -> float:
    """ra or dec; NaN where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise InputError(f"{where}: position {value!r} is no number of degrees")
    return float(value)
