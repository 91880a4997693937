"""The files that make a folder of partitions a HATS table, written and validated by `hats`. No Ray, no torch."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from hats.catalog.dataset.table_properties import TableProperties
from hats.catalog.partition_info import PartitionInfo
from hats.io import file_io, paths
from hats.io.parquet_metadata import write_parquet_metadata, write_voparquet_in_common_metadata
from hats.io.skymap import write_skymap
from hats.io.validation import is_valid_catalog
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from upath import UPath

from deepshadows import storage
from deepshadows.catalog.alignment import SKYMAP_ORDER
from deepshadows.catalog.healpix import INDEX_ORDER, Partition
from deepshadows.outcomes import Failure, StorageError


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
    """Everything beside the partitions, `hats.properties` last: without it no reader takes the folder for a table.

    Returns
    -------
    int
        Rows in the partitions, read back from their footers.
    """
    path = hats_path(table_url)
    with _translated(table_url, "writing the HATS files"):
        rows = _write_metadata(path, schema, has_rows=bool(partitions))
        pixels = [HealpixPixel(partition.order, partition.pixel) for partition in partitions]
        PartitionInfo.from_healpix(pixels).write_to_file(catalog_path=path)
        write_skymap(skymap, path)
        _table_properties(properties, rows, partitions, skymap).to_properties_file(path)
    return rows


def _write_metadata(path: UPath, schema: pa.Schema, *, has_rows: bool) -> int:
    """`_common_metadata` with the columns, also as a VOTable for TOPCAT and astropy; `_metadata` with all footers."""
    rows = 0
    if has_rows:
        rows = write_parquet_metadata(path)
    file_io.make_directory(path / "dataset", exist_ok=True)
    file_io.write_parquet_metadata(schema, paths.get_common_metadata_pointer(path))
    write_voparquet_in_common_metadata(
        path,
        field_units=_from_fields(schema, b"unit"),
        field_ucds=_from_fields(schema, b"ucd"),
        field_descriptions=_from_fields(schema, b"description"),
    )
    return rows


def _from_fields(schema: pa.Schema, key: bytes) -> dict[str, str]:
    found = {field.name: (field.metadata or {}).get(key, b"").decode() for field in schema}
    return {name: text for name, text in found.items() if text}


def _table_properties(
    properties: dict[str, Any], rows: int, partitions: list[Partition], skymap: NDArray[np.int64]
) -> TableProperties:
    return TableProperties(
        catalog_type="object",
        total_rows=rows,
        ra_column="ra",
        dec_column="dec",
        healpix_column="_healpix_29",
        healpix_order=INDEX_ORDER,
        skymap_order=SKYMAP_ORDER,
        hats_max_rows=max((partition.rows for partition in partitions), default=0),
        moc_sky_fraction=float(np.mean(skymap > 0)),
        **properties,
    )


def check_table(table_url: str) -> None:
    """Pass the strict validation of `hats`, or raise `Failure` with what it found."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with _translated(table_url, "validating"):
            valid = is_valid_catalog(hats_path(table_url), strict=True)
    finally:
        root.removeHandler(handler)
    if not valid:
        raise Failure(f"{table_url}: not a valid HATS table: {'; '.join(messages) or 'hats gives no reason'}")
