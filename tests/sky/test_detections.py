"""Detection tables in the three formats, with the user's own names, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, NotFoundError, UsageError
from deepshadows.schema import Flag
from deepshadows.settings import Columns
from deepshadows.sky.detections import read_detections

IDS, RA, DEC = [3, 1, 2], [30.5, 359.99999, 0.0], [-30.0, 89.5, -90.0]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".fits", ".fits.gz"])
def test_each_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    table = pa.table({"coadd_object_id": IDS, "RA": RA, "DEC": DEC, "more": [1.0, 2.0, 3.0]})
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        Table({name: np.array(table[name]) for name in table.column_names}).write(path)
    columns = Columns(id_column="coadd_object_id", ra_column="RA", dec_column="DEC")
    detections = read_detections(str(path), columns)
    assert detections.object_id.to_pylist() == IDS
    assert detections.ra.tolist() == RA
    assert detections.dec.tolist() == DEC
    assert detections.flags.tolist() == [0, 0, 0]


def test_a_folder_of_gzipped_tables_is_read(tmp_path: Path) -> None:
    for number in (1, 2):
        Table({"object_id": [number], "ra": [10.0], "dec": [0.0]}).write(tmp_path / f"{number}.fits.gz")
    assert read_detections(str(tmp_path), Columns()).object_id.to_pylist() == [1, 2]


def test_identifiers_stay_as_given(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("object_id,ra,dec\n00123,1.5,2.5\n123,1.5,2.5\n")
    assert read_detections(str(tmp_path / "d.csv"), Columns()).object_id.to_pylist() == ["00123", "123"]
    Table({"object_id": ["DES J1", "DES J2"], "ra": [1.5, 2.5], "dec": [0.5, 0.5]}).write(tmp_path / "d.fits")
    assert read_detections(str(tmp_path / "d.fits"), Columns()).object_id.to_pylist() == ["DES J1", "DES J2"]


def test_impossible_positions_are_flagged_not_dropped(place: str) -> None:
    ra = [float("nan"), -0.1, 360.1, 10.0, None, 10.0]
    dec = [0.0, 0.0, 0.0, 90.1, 0.0, 5.0]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"object_id": list("abcdef"), "ra": ra, "dec": dec}), sink)
    url = storage.join(place, "d.parquet")
    storage.write(url, sink.getvalue().to_pybytes())
    flags = read_detections(url, Columns()).flags
    assert [Flag.names(int(bits)) for bits in flags] == [["BAD_POSITION"]] * 5 + [[]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": [1], "ra": [1.0], "dec": [1.0]}), "no column object_id.*--id-column"),
        (pa.table({"object_id": [1], "ra": pa.array([1.0], pa.float32()), "dec": [1.0]}), "ra is float; float64"),
        (pa.table({"object_id": [1], "ra": ["1:2:3"], "dec": [1.0]}), "ra is string; float64"),
        (pa.table({"object_id": [None], "ra": [1.0], "dec": [1.0]}), "null"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=message):
        read_detections(str(tmp_path / "d.parquet"), Columns())


def test_missing_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no\.parquet"):
        read_detections(str(tmp_path / "no.parquet"), Columns())
    with pytest.raises(UsageError, match="no table"):
        read_detections(str(tmp_path / "what.txt"), Columns())
    (tmp_path / "d.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable table"):
        read_detections(str(tmp_path / "d.parquet"), Columns())


def test_an_empty_table_is_no_error(tmp_path: Path) -> None:
    empty = pa.table(
        {"object_id": pa.array([], pa.int64()), "ra": pa.array([], pa.float64()), "dec": pa.array([], pa.float64())}
    )
    pq.write_table(empty, tmp_path / "d.parquet")
    assert len(read_detections(str(tmp_path / "d.parquet"), Columns())) == 0


def test_a_footer_that_promises_other_rows_than_there_are_is_an_error(tmp_path: Path) -> None:
    """Each bit of the footer in turn: all rows, or our error; never fewer in silence (found by the fuzzer)."""
    good = tmp_path / "good.parquet"
    table = pa.table({"object_id": [1, 2, 3], "ra": [10.0, 20.0, 30.0], "dec": [0.0, 1.0, 2.0]})
    pq.write_table(table, good, store_schema=False, write_statistics=False, compression="none")
    data = good.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    bad = tmp_path / "bad.parquet"
    refused = 0
    for place in range(footer, len(data) - 8):
        for bit in range(8):
            bad.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                assert len(read_detections(str(bad), Columns())) == 3
            except Failure:
                refused += 1
    assert refused


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("object_id,ra,dec,ra\n1,10.0,0.0,20.0\n")
    with pytest.raises(InputError, match="column ra is there more than once"):
        read_detections(str(path), Columns())
