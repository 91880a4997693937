"""Images in Parquet files with the user's own column names: pixels, JPEG or PNG bytes, or lists."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.schema import SHAPE_TEXT
from deepshadows.settings import Cutouts as Settings
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.images.pictures import decode_picture, is_picture
from deepshadows.sky.images.record import Image, Source, column_names
from deepshadows.sky.shards import MAX_ROW_GROUP_BYTES

BATCH_ROWS = 128
"""Cells are unpacked into Python objects: a list of pixels takes some 100 kB."""


def _open(url: str, settings: Settings) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(storage.open_arrow(url), memory_map=False)
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(url, error) from error
    names = file.schema_arrow.names
    if lacking := [name for name in (settings.image_column, settings.id_column) if name not in names]:
        raise InputError(
            f"{url}: no column {' and '.join(lacking)}; it has {', '.join(names[:20])}; name them with --image-column "
            "and --id-column"
        )
    groups = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
    if max(groups, default=0) > MAX_ROW_GROUP_BYTES:
        raise InputError(f"{url}: a row group unpacks to {max(groups) >> 30} GiB; write smaller ones")
    return file


def count_parquet(url: str, settings: Settings) -> int:
    """Images of a Parquet file."""
    return int(_open(url, settings).metadata.num_rows)


def read_parquet_images(source: Source, settings: Settings, geometry: Geometry) -> Iterator[Image]:
    """Rows of a Parquet file.

    Raises
    ------
    InputError
        It is damaged, positions are not float64, or its images state another stretch or other bands.
    """
    file = _open(source.url, settings)
    schema = file.schema_arrow
    names = {what: name for what, name in column_names(settings).items() if name in schema.names}
    for what in ("ra", "dec"):
        if what in names and not pa.types.is_float64(kind := schema.field(names[what]).type):
            raise InputError(f"{source.url}: column {names[what]} is {kind}; float64 degrees are needed")
    shape, fov_arcsec = _stated(schema.field(settings.image_column), geometry, source.url)
    for row, cells in _cells(file, source, [settings.image_column, *names.values()]):
        where = f"{source.url} row {row}"
        pixels, reason = None, ""
        try:
            pixels = _pixels(cells[settings.image_column], shape, where)
        except InputError as error:
            reason = str(error)
        given = {what: cells[name] for what, name in names.items() if cells[name] is not None}
        yield Image(
            object_id=given.get("id"),
            where=where,
            pixels=pixels,
            reason=reason,
            label=given.get("label"),
            ra=given.get("ra", math.nan),
            dec=given.get("dec", math.nan),
            fov_arcsec=fov_arcsec,
        )


def _stated(field: pa.Field, geometry: Geometry, url: str) -> tuple[tuple[int, ...], float | None]:
    """Shape and field of view that the image column states; without, the network's shape and None."""
    stated = {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in (field.metadata or {}).items()
    }
    wanted = {"stretch": geometry.stretch.name, "bands": ",".join(geometry.bands)}
    for key, value in wanted.items():
        if stated.get(key, value) != value:
            raise InputError(f"{url}: its images state {key} {stated[key]}, not {value}; see --{key}")
    try:
        shape = tuple(int(side) for side in stated.get("shape", SHAPE_TEXT).split(","))
        return shape, float(stated["fov_arcsec"]) if "fov_arcsec" in stated else None
    except ValueError as error:
        raise InputError(f"{url}: the metadata of its image column cannot be read: {error}") from error


def _cells(file: pq.ParquetFile, source: Source, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and cells of each row of a source."""
    assert source.rows is not None
    start, end = 0, source.first_row + source.rows
    try:
        for number in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(number).num_rows
            if start + count > source.first_row and start < end:
                row = start
                for batch in file.iter_batches(BATCH_ROWS, [number], list(dict.fromkeys(columns))):
                    low, high = max(source.first_row - row, 0), min(end - row, batch.num_rows)
                    cells = batch.slice(low, max(high - low, 0)).to_pylist()
                    yield from enumerate(cells, start=row + low)
                    row += batch.num_rows
            start += count
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(source.url, error) from error


def _pixels(value: Any, shape: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """Pixels from what a cell holds; HuggingFace keeps the bytes of a picture in a struct."""
    value = value.get("bytes") if isinstance(value, dict) else value
    if value is None:
        raise InputError(f"{where}: no image")
    if isinstance(value, bytes):
        if is_picture(value):
            return decode_picture(value, where)
        if len(value) != math.prod(shape):
            raise InputError(f"{where}: {len(value)} bytes; {math.prod(shape)} make uint8 {shape}")
        return np.frombuffer(value, np.uint8).reshape(shape)
    try:
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"{where}: the image is a ragged list") from error
    if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() > 255)):
        raise InputError(f"{where}: the image is a list of {array.dtype}; whole numbers from 0 to 255 are needed")
    return (array.reshape(shape) if array.shape == (math.prod(shape),) else array).astype(np.uint8)
