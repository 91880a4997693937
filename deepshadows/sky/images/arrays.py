"""Images in numpy files: .npz, and .npy (N, S, S, 3) with labels, ids and positions in files beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Set
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.images.record import Image, Source, images_of
from deepshadows.sky.shards import read_npz

MAX_COMPANION_BYTES = 1 << 30
_COMPANIONS = {"id": ("_id", "_ids", "_object_id"), "label": ("_label", "_labels"), "ra": ("_ra",), "dec": ("_dec",)}


def read_npz_images(source: Source, geometry: Geometry) -> Iterator[Image]:
    """Rows of an npz file, brought to the field already; see `shards.read_npz`."""
    cutouts = read_npz(source.url, geometry, stem=source.stem)
    for row, object_id in enumerate(cutouts.object_id.to_pylist()):
        yield Image(
            object_id=object_id,
            where=f"{source.url} row {row}",
            pixels=cutouts.images[row],
            label=None if cutouts.label is None else int(cutouts.label[row]),
            ra=float(cutouts.ra[row]),
            dec=float(cutouts.dec[row]),
            flags=int(cutouts.flags[row]),
            fov_arcsec=geometry.fov_arcsec,
        )


def count_npy(url: str) -> int:
    """Images of an .npy file."""
    return _header(url)[0][0]


def _header(url: str) -> tuple[tuple[int, ...], int]:
    """Shape of an .npy file and where its pixels begin.

    Raises
    ------
    InputError
        It is damaged, or no uint8 (N, S, S, 3).
    """
    size_bytes = storage.stat(url).size_bytes
    with storage.open_reader(url, size_bytes=size_bytes) as file:
        shape, start = pixels_of_npy(file, size_bytes, url)
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise InputError(f"{url}: {shape}; uint8 (N, S, S, 3) is needed")
    return shape, start


def pixels_of_npy(file: IO[bytes], size_bytes: int, where: str) -> tuple[tuple[int, ...], int]:
    """Shape of an array of uint8 and where it begins; nothing is unpacked.

    Raises
    ------
    InputError
        No .npy, of another type or order, or of another length than its header says.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, column_major, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise InputError(f"{where}: not an .npy file: {error}") from error
    start = file.tell()
    if column_major or dtype != np.uint8:
        raise InputError(
            f"{where}: {dtype} {shape}{' in column order' if column_major else ''}; uint8 pixels are needed"
        )
    if start + math.prod(shape) != size_bytes:
        raise InputError(
            f"{where}: {size_bytes} bytes, its header says {start + math.prod(shape)}: truncated or damaged"
        )
    return shape, start


def read_npy_images(source: Source) -> Iterator[Image]:
    """Rows of an .npy array, by ranges."""
    shape, start = _header(source.url)
    beside = {what: _companion(urls, shape[0]) for what, urls in _companion_names(source.url).items()}
    size = math.prod(shape[1:])
    for first, last in source.steps():
        (data,) = storage.read_ranges(source.url, [start + first * size], [start + last * size])
        block = np.frombuffer(data, np.uint8).reshape(-1, *shape[1:])
        yield from images_of(
            source, first, block, {what: None if array is None else array[first:last] for what, array in beside.items()}
        )


def _companion_names(url: str) -> dict[str, list[str]]:
    """Addresses of the arrays that may lie beside an .npy file: `x_labels.npy` of `x.npy`, `y_train` of `X_train`."""
    folder, _, file = url.rpartition("/")
    stem = file.removesuffix(".npy")
    names = {what: [f"{folder}/{stem}{suffix}.npy" for suffix in suffixes] for what, suffixes in _COMPANIONS.items()}
    if stem[:2].lower() == "x_":
        names["label"] += [f"{folder}/y{stem[1:]}.npy", f"{folder}/Y{stem[1:]}.npy"]
    return names


def companions(urls: Set[str]) -> set[str]:
    """Those of some .npy files that hold labels, ids or positions of another of them."""
    beside = {name for url in urls for names in _companion_names(url).values() for name in names}
    return beside & urls


def _companion(urls: list[str], count: int) -> NDArray[Any] | None:
    for url in urls:
        if not storage.exists(url):
            continue
        if storage.stat(url).size_bytes > MAX_COMPANION_BYTES:
            raise InputError(f"{url}: too large for one value an image")
        try:
            array = np.load(io.BytesIO(storage.read(url)), allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise InputError(f"{url}: not a readable .npy file: {error}") from error
        if array.shape not in ((count,), (count, 1)):
            raise InputError(f"{url}: shape {array.shape}; one value for each of the {count} images is needed")
        return np.asarray(array.reshape(count))
    return None
