"""Detection tables as users have them (Parquet, FITS, CSV), checked where they enter. No Ray, no torch."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from astropy.table import Table
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError, StorageError, UsageError
from deepshadows.schema import Flag
from deepshadows.settings import Columns
from deepshadows.sky.fits_files import fits_errors, hdus_of, open_fits, unzipped
from deepshadows.sky.row_groups import open_parquet
from deepshadows.sky.shards import object_ids, positions

TABLE_SUFFIXES = (".parquet", ".fits", ".fits.gz", ".csv")
MAX_UNZIPPED_BYTES = 8 << 30
"""A gzipped table that unpacks to more is not read: some megabytes may promise any number of them."""
BLOCK_ROWS = 2_000_000
"""Of detections in memory: some 60 MB, and four times that while their tiles are looked up."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Identifiers and positions, in the order of the input.

    Attributes
    ----------
    object_id : pa.Array (N,)
        int64 or string.
    ra, dec : float64 (N,)
        ICRS degrees; NaN where the input had none.
    """

    object_id: pa.Array
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ra)


@dataclass(frozen=True, kw_only=True)
class Detections(Positions):
    """What is to be cut and scored.

    Attributes
    ----------
    flags : int32 (N,)
        BAD_POSITION where a position is impossible or missing: without one nothing can be cut.
    """

    flags: NDArray[np.int32]


def read_table(url: str, id_column: str = "object_id") -> pa.Table:
    """A table from Parquet, FITS or CSV, by its suffix, or a folder of such files.

    Identifiers stay as given: those of a CSV are integers only where that loses nothing (no leading zeros).
    """
    name = url.lower()
    try:
        if name.endswith(".parquet"):
            return pq.read_table(storage.open_arrow(url))
        if name.endswith(".csv"):
            as_text = pyarrow.csv.ConvertOptions(column_types={id_column: pa.string()})
            return _ids_as_given(
                pyarrow.csv.read_csv(io.BytesIO(storage.read(url)), convert_options=as_text), id_column
            )
        if name.endswith((".fits", ".fits.gz", ".fit")):
            return _read_fits(url)
        files = storage.list_objects(url, TABLE_SUFFIXES)
        if files and all(file.url != url for file in files):
            return pa.concat_tables([read_table(file.url, id_column) for file in files], promote_options="default")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _failure(url, error) from error
    raise UsageError(f"{url}: no table there (.parquet, .fits or .csv)")


def _failure(url: str, error: Exception) -> InputError | StorageError:
    failure = storage.arrow_failure(url, error)
    return failure if isinstance(failure, StorageError) else InputError(f"{url}: not a readable table: {error}")


def _ids_as_given(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    try:
        numbers = table[name].cast(pa.int64())
    except pa.ArrowInvalid:
        return table
    if not numbers.cast(pa.string()).equals(table[name]):
        return table
    return table.set_column(table.column_names.index(name), name, numbers)


def _read_fits(url: str) -> pa.Table:
    data = storage.read(url)
    with fits_errors(url), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_fits(io.BytesIO(_unpacked(data, url)), url) as hdus:
            for _ in hdus_of(hdus, url):  # `Table.read` goes through them all
                pass
            table = Table.read(hdus, format="fits")
        table.convert_bytestring_to_unicode()
        return pa.Table.from_pandas(table.to_pandas(), preserve_index=False)


def _unpacked(data: bytes, url: str) -> bytes:
    """The content of what is gzipped, counted before any of it is kept; anything else as it is."""
    content = unzipped(io.BytesIO(data))
    if not isinstance(content, gzip.GzipFile):
        return data
    unpacked_bytes = 0
    while piece := content.read(1 << 20):
        unpacked_bytes += len(piece)
        if unpacked_bytes > MAX_UNZIPPED_BYTES:
            raise InputError(
                f"{url}: unpacks to more than {MAX_UNZIPPED_BYTES >> 30} GiB; split it, or give it as Parquet, which "
                "is read by parts"
            )
    return gzip.decompress(data)


def check_columns(table: pa.Table, url: str, wanted: Sequence[str]) -> None:
    """An `InputError` where a table lacks one of its columns of identifiers and positions, or has it twice."""
    if lacking := [name for name in wanted if name not in table.column_names]:
        raise InputError(
            f"{url}: no column {', '.join(lacking)}; it has {', '.join(table.column_names[:20])}; "
            "name them with --id-column, --ra-column, --dec-column"
        )
    if twice := [name for name in wanted if table.column_names.count(name) > 1]:
        raise InputError(f"{url}: column {', '.join(twice)} is there more than once; rename or leave out the others")


def list_tables(url: str) -> list[storage.StoredObject]:
    """The detection tables of a folder, or the one named; none is a `UsageError`."""
    files = storage.list_objects(url, TABLE_SUFFIXES)
    if not files:
        if url.lower().endswith(TABLE_SUFFIXES):
            storage.stat(url)
        raise UsageError(f"{url}: no table there (.parquet, .fits or .csv)")
    return files


def detection_blocks(url: str, columns: Columns, block_rows: int = BLOCK_ROWS) -> Iterator[Detections]:
    """Read and check detections in the order of the input, a block at a time; one empty block where there are none.

    Of Parquet no more than a block and a row group are in memory, and only the three columns; FITS and CSV are read a
    file at a time.

    Raises
    ------
    InputError
        A column is missing, ra or dec are not float64, identifiers are null or not integers or strings.
    """
    wanted = (columns.id_column, columns.ra_column, columns.dec_column)
    for file in list_tables(url):
        if file.url.lower().endswith(".parquet"):
            tables = _parquet_blocks(file.url, wanted, block_rows)
        else:
            table = read_table(file.url, columns.id_column)
            starts = range(0, max(1, table.num_rows), block_rows)
            tables = (table.slice(start, block_rows) for start in starts)
        for table in tables:
            check_columns(table, file.url, wanted)
            ra, dec, flags = positions(table, file.url, columns.ra_column, columns.dec_column)
            flags = np.where(flags != 0, Flag.BAD_POSITION.bit, 0).astype(np.int32)
            ids = object_ids(table[columns.id_column], file.url)
            yield Detections(object_id=ids, ra=ra, dec=dec, flags=flags)


def _parquet_blocks(url: str, wanted: Sequence[str], block_rows: int) -> Iterator[pa.Table]:
    try:
        file = open_parquet(url, wanted[0])
        names = file.schema_arrow.names
        chosen = list(dict.fromkeys(name for name in wanted if name in names))
        if not file.metadata.num_rows or len(chosen) < len(set(wanted)):
            yield file.schema_arrow.empty_table()
            return
        found = 0
        for batch in file.iter_batches(block_rows, columns=chosen):
            found += batch.num_rows
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _failure(url, error) from error
    if found != file.metadata.num_rows:
        raise InputError(f"{url}: damaged: {file.metadata.num_rows} rows by its footer, {found} in its row groups")


def read_detections(url: str, columns: Columns) -> Detections:
    """All detections at once; see `detection_blocks`."""
    blocks = list(detection_blocks(url, columns))
    if len({block.object_id.type for block in blocks}) > 1:
        raise InputError(f"{url}: tables with integers and with strings as identifiers")
    return Detections(
        object_id=pa.concat_arrays([block.object_id for block in blocks]),
        ra=np.concatenate([block.ra for block in blocks]),
        dec=np.concatenate([block.dec for block in blocks]),
        flags=np.concatenate([block.flags for block in blocks]),
    )
