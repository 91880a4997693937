"""Images in HDF5 datasets, read a few rows at a time; h5py is an extra of this package."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, UsageError
from deepshadows.settings import Cutouts as Settings
from deepshadows.sky.images.record import Image, Source, column_names, images_of

MAX_UNPACKING = 2000
"""No compression of images gains more than this: a dataset that declares more holds nothing."""
MAX_CHUNK_BYTES = 1 << 30
_DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
"""What h5py raises on damaged files."""


class _File:
    """An HDF5 file; datasets must lie in it, whole: links to other files are not followed."""

    def __init__(self, url: str) -> None:
        try:
            self._h5py = importlib.import_module("h5py")
        except ImportError as error:
            raise UsageError(f"{url}: HDF5 needs h5py: pip install 'deepshadows[hdf5]'") from error
        self._url = url
        self._reader = storage.open_reader(url, 1 << 20)
        try:
            self._file = self._h5py.File(self._reader, "r")
        except _DAMAGE as error:
            raise InputError(f"{url}: not a readable HDF5 file: {error}") from error

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._reader.close()

    def dataset(self, name: str) -> Any:
        """A dataset by its name or path; None where there is none."""
        try:
            return self._dataset(name)
        except Failure:
            raise
        except _DAMAGE as error:
            raise InputError(f"{self._url}: {name} cannot be read: {error}") from error

    def _dataset(self, name: str) -> Any:
        found = self._file
        for part in name.strip("/").split("/"):
            link = found.get(part, getlink=True)
            if link is None:
                return None
            if not isinstance(link, self._h5py.HardLink):
                raise InputError(f"{self._url}: {name} is a link; only what lies in the file itself is read")
            found = found[part]
        if not isinstance(found, self._h5py.Dataset):
            raise InputError(f"{self._url}: {name} is a group; name a dataset in it, such as {name}/image")
        if found.is_virtual or found.external:
            raise InputError(f"{self._url}: {name} lies in other files; only what lies in the file itself is read")
        if math.prod(found.shape) * found.dtype.itemsize > MAX_UNPACKING * max(found.id.get_storage_size(), 1):
            raise InputError(f"{self._url}: {name} declares {found.shape} and holds next to nothing of it")
        if math.prod(found.chunks or ()) * found.dtype.itemsize > MAX_CHUNK_BYTES:
            raise InputError(f"{self._url}: {name} has chunks of {found.chunks}; write smaller ones")
        return found

    def images(self, name: str) -> Any:
        """The dataset of the images."""
        images = self.dataset(name)
        if images is None:
            have = ", ".join(list(self._file)[:20])
            raise InputError(f"{self._url}: no dataset {name}; it has {have}; name it with --image-column")
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise InputError(f"{self._url}: {name} is {images.dtype} {shape}; uint8 (N, S, S, 3) is needed")
        return images

    def column(self, name: str, count: int, *, position: bool) -> Any:
        """A dataset with one value an image, None where there is none."""
        column = self.dataset(name)
        if column is not None and column.shape not in ((count,), (count, 1)):
            raise InputError(f"{self._url}: {name} is {column.shape}; one value for each of {count} images is needed")
        if column is not None and position and column.dtype != np.float64:
            raise InputError(f"{self._url}: {name} is {column.dtype}; float64 degrees are needed")
        return column


def count_hdf5(url: str, settings: Settings) -> int:
    """Images of an HDF5 file."""
    with _File(url) as file:
        return int(file.images(settings.image_column).shape[0])


def read_hdf5_images(source: Source, settings: Settings) -> Iterator[Image]:
    """Rows of an HDF5 file: datasets by the settings' names of columns."""
    with _File(source.url) as file:
        images = file.images(settings.image_column)
        columns = {
            what: file.column(name, len(images), position=what in ("ra", "dec"))
            for what, name in column_names(settings).items()
        }
        for first, last in source.steps():
            try:
                block = images[first:last]
                values = {
                    what: None if column is None else np.asarray(column[first:last]).reshape(-1)
                    for what, column in columns.items()
                }
            except _DAMAGE as error:
                raise InputError(f"{source.url}: rows {first} to {last} cannot be read: {error}") from error
            yield from images_of(source, first, block, values)
