"""The files that make a folder of partitions a HATS table, written and validated by `hats`. No Ray, no torch."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog.dataset.table_properties import TableProperties
from hats.catalog.partition_info import PartitionInfo
from hats.io import file_io, paths
from hats.io.parquet_metadata import write_voparquet_in_common_metadata
from hats.io.skymap import write_skymap
from hats.io.validation import is_valid_collection
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from upath import UPath

from deepshadows import storage
from deepshadows.catalog.alignment import SKYMAP_ORDER
from deepshadows.catalog.collection import collection_text
from deepshadows.catalog.healpix import INDEX_ORDER, Partition
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.outcomes import Failure, StorageError

_FOOTERS = 16
"""Footers read at a time."""


def hats_path(url: str) -> UPath:
    """The address as `hats` and LSDB take it: left alone they would go to S3 without credentials."""
    if not storage.is_s3(url):
        return UPath(url)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    client = {"client_kwargs": {"region_name": region}} if region else {}
    return UPath(url, anon=False, use_listings_cache=False, **client)


@contextlib.contextmanager
def _translated(url: str, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{url}: {doing} failed: {error}") from error


def write_table_files(
    table_url: str,
    schema: pa.Schema,
    partitions: list[Partition],
    skymap: NDArray[np.int64],
    properties: dict[str, Any],
) -> int:
    """Everything of the main table beside the partitions, `hats.properties` last.

    Without it no reader takes the folder for a table.

    Returns
    -------
    int
        Rows in the partitions, read back from their footers.
    """
    path = hats_path(table_url)
    rows = _write_metadata(table_url, schema, [partition.path for partition in partitions])
    with _translated(table_url, "writing the HATS files"):
        write_skymap(skymap, path)
        _write_votable(path, schema)
        _write_pixels(path, partitions)
        TableProperties(
            catalog_type="object",
            total_rows=rows,
            skymap_order=SKYMAP_ORDER,
            hats_max_rows=max((partition.rows for partition in partitions), default=0),
            moc_sky_fraction=float(np.mean(skymap > 0)),
            **_POSITION,
            **properties,
        ).to_properties_file(path)
    return rows


def write_margin_files(
    margin_url: str, schema: pa.Schema, cells: list[Partition], margin_arcsec: float, properties: dict[str, Any]
) -> int:
    """The same of the margin cache; `properties` must have `primary_catalog`."""
    path = hats_path(margin_url)
    rows = _write_metadata(margin_url, schema, [cell.path for cell in cells])
    with _translated(margin_url, "writing the HATS files"):
        _write_votable(path, schema)
        _write_pixels(path, cells)
        TableProperties(
            catalog_name=storage.name_of(margin_url),
            catalog_type="margin",
            total_rows=rows,
            margin_threshold=margin_arcsec,
            **_POSITION,
            **properties,
        ).to_properties_file(path)
    return rows


def write_index_files(index_url: str, schema: pa.Schema, parts: list[str], properties: dict[str, Any]) -> int:
    """The same of the id index; `properties` must have `primary_catalog`."""
    rows = _write_metadata(index_url, schema, parts)
    with _translated(index_url, "writing the HATS files"):
        TableProperties(
            catalog_name=storage.name_of(index_url),
            catalog_type="index",
            total_rows=rows,
            indexing_column="object_id",
            **properties,
        ).to_properties_file(hats_path(index_url))
    return rows


_POSITION = {"ra_column": "ra", "dec_column": "dec", "healpix_column": "_healpix_29", "healpix_order": INDEX_ORDER}


def _write_pixels(path: UPath, partitions: list[Partition]) -> None:
    pixels = [HealpixPixel(partition.order, partition.pixel) for partition in partitions]
    PartitionInfo.from_healpix(pixels).write_to_file(catalog_path=path)


def _write_metadata(table_url: str, schema: pa.Schema, files: list[str]) -> int:
    """`_common_metadata` with the columns, and `_metadata` with the footers of all files; the rows in them."""

    def footer(file: str) -> pq.FileMetaData:
        with storage.open_arrow(storage.join(table_url, file)) as handle:
            found = pq.read_metadata(handle)
        found.set_file_path(file.removeprefix("dataset/"))
        return found

    with ThreadPoolExecutor(_FOOTERS) as pool:
        footers = list(pool.map(footer, files))
    sink = io.BytesIO()
    pq.write_metadata(schema, sink, metadata_collector=footers)
    storage.write(storage.join(table_url, "dataset", "_metadata"), sink.getvalue())
    path = hats_path(table_url)
    with _translated(table_url, "writing the HATS files"):
        file_io.write_parquet_metadata(schema, paths.get_common_metadata_pointer(path))
    return sum(entry.num_rows for entry in footers)


def _write_votable(path: UPath, schema: pa.Schema) -> None:
    """The columns as a VOTable in `_common_metadata`, for TOPCAT and astropy."""
    write_voparquet_in_common_metadata(
        path,
        field_units=_from_fields(schema, b"unit"),
        field_ucds=_from_fields(schema, b"ucd"),
        field_descriptions=_from_fields(schema, b"description"),
    )


def _from_fields(schema: pa.Schema, key: bytes) -> dict[str, str]:
    found = {field.name: (field.metadata or {}).get(key, b"").decode() for field in schema}
    return {name: text for name, text in found.items() if text}


def read_skymap(table_url: str) -> NDArray[np.int64]:
    """Rows in each pixel of SKYMAP_ORDER, as skymap.fits of a table has them."""
    with _translated(table_url, "reading skymap.fits"):
        found = file_io.read_fits_image(paths.get_skymap_file_pointer(hats_path(table_url)))
    return np.asarray(found, dtype=np.int64)


def provenance_of(properties: dict[str, Any]) -> dict[str, Any]:
    """What margin and index repeat of the table's properties."""
    names = ("hats_builder", "hats_creation_date", "hats_version", "deepshadows_version", "deepshadows_model_sha256")
    return {name: properties[name] for name in names if name in properties}


def check_version(version: VersionFolder) -> None:
    """Write the file that makes a version whole, and pass the strict validation of `hats`: table, margin and index.

    Raises
    ------
    Failure
        With what `hats` found.
    """
    storage.write(version.properties_url, collection_text(version.catalog))
    check_table(version.url)


def check_table(url: str) -> None:
    """Pass the strict validation of a collection by `hats`, or raise `Failure` with what it found."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with _translated(url, "validating"):
            valid = is_valid_collection(hats_path(url), strict=True)
    finally:
        root.removeHandler(handler)
    if not valid:
        raise Failure(f"{url}: not a valid HATS collection: {'; '.join(messages) or 'hats gives no reason'}")
