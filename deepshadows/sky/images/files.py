"""Images that are files: JPEG and PNG pictures, FITS images of one object, members of WebDataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.settings import Cutouts as Settings
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.images.arrays import pixels_of_npy
from deepshadows.sky.images.pictures import MAX_PICTURE_BYTES, decode_picture, is_picture
from deepshadows.sky.images.record import Image, Item, Source, column_names
from deepshadows.sky.presets import preset_named
from deepshadows.sky.tile_index import index_files
from deepshadows.sky.tiles import read_tile

MAX_IMAGE_SIDE_PIX = 2048
"""A FITS image with more is no image of one object but a tile."""
STREAM_BYTES = 8 << 20
_PICTURE = ("jpg", "jpeg", "png", "npy")
_WANTED = (*_PICTURE, "cls", "json")


def read_pictures(source: Source) -> Iterator[Image]:
    """A JPEG or PNG an object."""
    for item in source.items:
        (file,) = item.files
        yield _picture(item, file)


def _picture(item: Item, file: storage.StoredObject) -> Image:
    kept: dict[str, Any] = {"object_id": item.object_id, "where": file.url, "label": item.label}
    try:
        if file.size_bytes > MAX_PICTURE_BYTES:
            raise InputError(f"{file.url}: {file.size_bytes >> 20} MiB; no picture of one object has so many")
        return Image(pixels=decode_picture(storage.read(file.url), file.url), **kept)
    except InputError as error:
        return Image(reason=str(error), **kept)


def read_fits_images(source: Source, settings: Settings, geometry: Geometry) -> Iterator[Image]:
    """FITS images of one object each: cubes, several HDUs or a file a band; cut around the centre, stretched."""
    for item in source.items:
        where = item.files[0].url
        try:
            yield _fits_image(item, where, settings, geometry)
        except InputError as error:
            yield Image(object_id=item.object_id, where=where, label=item.label, reason=str(error))


def _fits_image(item: Item, where: str, settings: Settings, geometry: Geometry) -> Image:
    index = index_files(item.files, settings.zero_point, preset_named(settings.survey))
    if index.problems:
        raise InputError("; ".join(reason for _, reason in index.problems))
    if len(index.tiles) != 1:
        raise InputError(f"{where}: {len(index.tiles)} images of different objects in it; one is needed")
    (tile,) = index.tiles
    height, width = tile.reference.shape
    if max(height, width) > MAX_IMAGE_SIDE_PIX:
        raise InputError(f"{where}: {width} x {height} pixels: a tile; give --detections to cut objects from it")
    pixels = read_tile(tile, geometry.bands)
    ra, dec = pixels.wcs.all_pix2world([(width - 1) / 2], [(height - 1) / 2], 0)
    stack = cut(pixels, np.asarray(ra), np.asarray(dec), geometry)
    return Image(
        object_id=item.object_id,
        where=where,
        pixels=stack.images[0],
        label=item.label,
        ra=float(ra[0]) % 360.0,
        dec=float(dec[0]),
        flags=int(stack.flags[0]),
        fov_arcsec=geometry.fov_arcsec,
    )


def read_webdataset(source: Source, settings: Settings) -> Iterator[Image]:
    """Samples of a tar: members of one name, a picture with what stands beside it; nothing is unpacked to disk.

    Keys begin anew in each tar, so an identifier that is not given in a sample's JSON is the tar's name and the key.

    Raises
    ------
    InputError
        The archive is damaged; what came before has been yielded.
    """
    with storage.open_reader(source.url, STREAM_BYTES) as reader:
        size_bytes = storage.stat(source.url).size_bytes
        try:
            with tarfile.open(fileobj=reader, mode="r|") as archive:
                yield from _samples(archive, source, settings)
                end = archive.offset
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise InputError(f"{source.url}: damaged tar: {error}") from error
    (block,) = storage.read_ranges(source.url, [end], [min(end + 512, size_bytes)]) if end < size_bytes else (b"x",)
    if block.strip(b"\0"):  # tarfile takes a damaged header for the end
        raise InputError(f"{source.url}: damaged or cut off after byte {end}; what lies behind it is lost")


def _samples(archive: tarfile.TarFile, source: Source, settings: Settings) -> Iterator[Image]:
    """One image for each run of members with the same key."""
    key = ""
    parts: dict[str, bytes] = {}
    for member in archive:
        where = f"{source.url} member {member.name!r}"
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        if not member.isreg() or path.is_absolute() or ".." in path.parts or member.size > MAX_PICTURE_BYTES:
            why = f"no plain file below the tar's root of at most {MAX_PICTURE_BYTES >> 20} MiB"
            yield Image(object_id=f"{source.stem}/{member.name}", where=where, reason=f"{where}: {why}")
            continue
        base, _, suffix = path.name.partition(".")
        this = str(path.with_name(base)) if base else member.name
        if this != key and parts:
            yield _sample(key, parts, source, settings)
            parts = {}
        key = this
        file = archive.extractfile(member)
        parts[suffix.lower()] = file.read() if file is not None and suffix.lower() in _WANTED else b""
    if parts:
        yield _sample(key, parts, source, settings)


def _sample(key: str, parts: dict[str, bytes], source: Source, settings: Settings) -> Image:
    """The image of one sample: .jpg, .png or .npy; .cls is its label, .json has the settings' columns."""
    where = f"{source.url} sample {key!r}"
    kept: dict[str, Any] = {"object_id": f"{source.stem}/{key}", "where": where}
    try:
        given = _json(parts.get("json", b"{}"), where)
        names = column_names(settings)
        kept |= {what: given[names[what]] for what in ("label", "ra", "dec") if given.get(names[what]) is not None}
        kept["object_id"] = given.get(names["id"], kept["object_id"])
        if "cls" in parts:
            kept.setdefault("label", parts["cls"].decode("utf-8", errors="replace").strip())
        found = [suffix for suffix in parts if suffix in _PICTURE]
        if len(found) != 1:
            have = ", ".join(sorted(parts))
            raise InputError(f"{where}: {len(found)} images (.jpg, .png, .npy) in it, one is needed; it has {have}")
        data = parts[found[0]]
        pixels = _array(data, where) if not is_picture(data) and found[0] == "npy" else decode_picture(data, where)
        return Image(pixels=pixels, **kept)
    except InputError as error:
        return Image(reason=str(error), **kept)


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its .json cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: its .json is no object")
    return values


def _array(data: bytes, where: str) -> NDArray[np.uint8]:
    """An .npy image."""
    shape, start = pixels_of_npy(io.BytesIO(data), len(data), where)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
