"""Fetched images as cut-out shards: brought to the network's field, with their labels where the positions have them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.schema import IMAGE_SHAPE, Flag
from deepshadows.sky.cutouts import bring_to_field, cut, same_scale
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.sky.viewer import Request, decode_fits, decode_jpeg
from deepshadows.verbs.fetch_objects import Objects
from deepshadows.verbs.progress import track

SHARDS = "shards"


def write_shards(
    output: str,
    objects: Objects,
    files: Sequence[str],
    have: Sequence[int],
    good: Mapping[str, Mapping[str, Any]],
    request: Request,
    shard_rows: int,
) -> int:
    """Write the images of the rows `have` in their order; how many shards there are.

    The shards of an earlier run are replaced. None are written where a network could not take such images.

    Raises
    ------
    InputError
        A file is not what was fetched.
    """
    folder = storage.join(output, SHARDS)
    earlier = {entry.url for entry in storage.list_objects(folder, (".parquet",))}
    starts = range(0, len(have), shard_rows) if request.unusable() is None else range(0)
    written = set()
    for number, start in enumerate(track(starts, "writing shards", len(starts)) if len(starts) else ()):
        part = slice(start, start + shard_rows)
        url = storage.join(folder, f"{request.survey}-{number:05d}.parquet")
        write_shard(url, _shard(output, objects, files[part], have[part], good, request))
        written.add(url)
    for url in earlier - written:
        storage.delete(url)
    return len(written)


def _shard(
    output: str,
    objects: Objects,
    files: Sequence[str],
    rows: Sequence[int],
    good: Mapping[str, Mapping[str, Any]],
    request: Request,
) -> Cutouts:
    index = np.array(rows, dtype=np.int64)
    images = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)
    flags = np.empty(len(rows), np.int32)
    for number, (file, row) in enumerate(zip(files, rows, strict=True)):
        url = storage.join(output, file)
        body = storage.read(url)
        if hashlib.sha256(body).hexdigest() != good[file]["sha256"]:
            raise InputError(f"{url}: not what was fetched; delete it and run the same command again")
        images[number], flags[number] = _image(body, request, float(objects.ra[row]), float(objects.dec[row]))
        if good[file]["unobserved"] > 0:
            flags[number] |= Flag.SOME_MASKED.bit
    geometry = request.geometry
    return Cutouts(
        object_id=objects.object_id.take(pa.array(index)),
        ra=objects.ra[index],
        dec=objects.dec[index],
        images=images,
        flags=flags,
        label=None if objects.label is None else objects.label[index],
        fov_arcsec=geometry.fov_arcsec,
        stretch=geometry.stretch.name,
        bands=geometry.bands,
    )


def _image(body: bytes, request: Request, ra: float, dec: float) -> tuple[NDArray[np.uint8], int]:
    """One image as the network takes it, uint8 (64, 64, 3), and its flags."""
    geometry = request.geometry
    if request.format == "jpeg":
        fov = request.fov_arcsec
        if same_scale(fov, geometry.fov_arcsec):
            fov = geometry.fov_arcsec  # whole pixels are averaged, 4 x 4 at zoom 15
        images, flags = bring_to_field(decode_jpeg(body, request)[None], np.array([fov]), geometry)
        return images[0], int(flags[0])
    tile = decode_fits(body, request, ra, dec)
    order = [tile.bands.index(band) for band in geometry.bands]
    tile = replace(
        tile, bands=geometry.bands, flux=tile.flux[order], valid=tile.valid[order], saturated=tile.saturated[order]
    )
    stack = cut(tile, np.array([ra]), np.array([dec]), geometry)
    return stack.images[0], int(stack.flags[0])
