"""Selected rows as one file: flat Parquet, FITS or VOTable, with units, UCDs, descriptions and where they come from.

Parquet is written as the rows come. FITS and VOTable are built in memory, as astropy builds them, and have their own
null: NaN in columns of floats, TNULL or a mask in those of integers, an empty text. No Ray, no torch.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.io.votable import from_table
from astropy.io.votable.tree import CooSys, Info, VOTableFile
from astropy.table import Column, MaskedColumn, Table

from deepshadows import storage
from deepshadows.catalog.partitions import ROW_GROUP_ROWS, layout
from deepshadows.outcomes import InputError, UsageError

MOST_ROWS_IN_MEMORY = 20_000_000
"""Of a FITS file or VOTable: about 6 GB while it is written."""


def export(tables: Iterator[pa.Table], url: str, facts: Mapping[str, str]) -> int:
    """Write rows to one file, of the kind that its name ends in; the number of rows.

    Parameters
    ----------
    tables : iterator of pa.Table
        All of one schema, whose fields have `unit`, `ucd` and `description`; one at least.
    facts : dict
        Where the rows come from, written into the file.

    Raises
    ------
    UsageError
        The name ends in nothing that is known, or there are too many rows for the kind.
    InputError
        A text cannot be written to FITS.
    """
    write = writer_of(url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / storage.name_of(url)
        rows = write(tables, path, facts)
        storage.upload(path, url)
    return rows


def writer_of(url: str) -> Callable[[Iterator[pa.Table], Path, Mapping[str, str]], int]:
    """What writes such a file, by the end of its name."""
    kinds = {".parquet": _write_parquet, ".fits": _write_fits, ".fit": _write_fits, ".vot": _write_votable}
    for ending, write in kinds.items():
        if url.lower().endswith(ending):
            return write
    raise UsageError(f"-o {url}: the name decides the format; end it in .parquet, .fits or .vot")


def _write_parquet(tables: Iterator[pa.Table], path: Path, facts: Mapping[str, str]) -> int:
    """Row groups as in the catalogue; the columns also as a VOTable in the footer, for TOPCAT."""
    first = next(tables)
    votable = io.BytesIO()
    _votable(first, facts).to_xml(votable)
    metadata = {"IVOA.VOTable-Parquet.version": "1.0", "IVOA.VOTable-Parquet.content": votable.getvalue()}
    schema = first.schema.with_metadata({**metadata, **{f"deepshadows.{key}": text for key, text in facts.items()}})
    rows, waiting, held = 0, [first], 0
    with pq.ParquetWriter(path, schema, **layout(schema)) as writer:
        for table in tables:
            waiting.append(table)
            held += len(table)
            rows += len(table)
            if held >= ROW_GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting).cast(schema), ROW_GROUP_ROWS)
                waiting, held = [], 0
        if held or not rows:
            writer.write_table(pa.concat_tables(waiting).cast(schema), ROW_GROUP_ROWS)
    return rows


def _whole(tables: Iterator[pa.Table], path: Path) -> pa.Table:
    """All rows at once."""
    parts, rows = [], 0
    for table in tables:
        parts.append(table)
        rows += len(table)
        if rows > MOST_ROWS_IN_MEMORY:
            raise UsageError(
                f"-o {path.name}: more than {MOST_ROWS_IN_MEMORY:,} rows, which this format is built in memory for; "
                "write .parquet, or select fewer"
            )
    return pa.concat_tables(parts)


def _write_fits(tables: Iterator[pa.Table], path: Path, facts: Mapping[str, str]) -> int:
    """A binary table; units in TUNITn, UCDs in TUCDn, descriptions in TCOMMn, which TOPCAT reads."""
    table = _whole(tables, path)
    for field in table.schema:
        if pa.types.is_string(field.type):
            _refuse_other_than_ascii(table[field.name], field.name)
    unit = fits.table_to_hdu(_astropy(table))
    for number, field in enumerate(table.schema, start=1):
        for keyword, key in (("TUCD", b"ucd"), ("TCOMM", b"description")):
            if text := (field.metadata or {}).get(key, b"").decode():
                unit.header.set(f"{keyword}{number}", text, after=f"TFORM{number}")
    unit.header["RADESYS"] = "ICRS"
    for name, fact in facts.items():
        unit.header.add_history(f"{name}: {fact}".encode("ascii", "backslashreplace").decode())
    unit.name = "SELECTION"
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    return len(table)


def _refuse_other_than_ascii(column: pa.ChunkedArray, name: str) -> None:
    for text in column.unique().to_pylist():
        if text is not None and not text.isascii():
            raise InputError(f"{name} {text!r}: FITS holds ASCII only; write .vot or .parquet")


def _write_votable(tables: Iterator[pa.Table], path: Path, facts: Mapping[str, str]) -> int:
    table = _whole(tables, path)
    _votable(table, facts).to_xml(str(path), tabledata_format="binary2")
    return len(table)


def _votable(table: pa.Table, facts: Mapping[str, str]) -> VOTableFile:
    """A VOTable with UCDs and the frame of its positions."""
    votable = from_table(_astropy(table))
    resource = votable.resources[0]
    resource.coordinate_systems.append(CooSys(ID="icrs", system="ICRS", config={"version_1_4_or_later": True}))
    for key, text in facts.items():
        resource.infos.append(Info(name=key, value=text))
    for column in resource.tables[0].fields:
        column.ucd = (table.schema.field(column.name).metadata or {}).get(b"ucd", b"").decode() or None
        if column.name in ("ra", "dec"):
            column.ref = "icrs"
    return votable


def _astropy(table: pa.Table) -> Table:
    """The rows as astropy takes them: NaN for null floats, masked integers, empty texts."""
    columns = []
    for field in table.schema:
        metadata = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
        known = {"name": field.name, "unit": metadata.get("unit"), "description": metadata.get("description")}
        column = table[field.name].combine_chunks()
        if pa.types.is_floating(field.type):
            columns.append(Column(column.fill_null(np.nan).to_numpy(), **known))
        elif pa.types.is_string(field.type):
            columns.append(Column(np.array(column.fill_null("").to_pylist(), dtype=np.str_), **known))
        else:
            values = column.fill_null(0).to_numpy()
            if column.null_count:
                lowest = np.iinfo(values.dtype).min
                null = column.is_null().to_numpy(zero_copy_only=False)
                columns.append(MaskedColumn(values, mask=null, fill_value=lowest, **known))
            else:
                columns.append(Column(values, **known))
    return Table(columns)
