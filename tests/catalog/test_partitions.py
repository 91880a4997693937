"""One partition: repeated objects, order, layout of the file; and the staged objects that feed it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.catalog.partitions import (
    catalog_schema,
    describe_repeats,
    in_sky_order,
    repeated_rows,
    to_parquet,
)
from deepshadows.catalog.pieces import gather, split
from deepshadows.schema import HEALPIX, Flag
from tests.catalog.finished_runs import rows, sky


def indexed(table: pa.Table, index: list[int]) -> pa.Table:
    return table.add_column(0, HEALPIX, pa.array(index, pa.int64()))


def test_the_second_row_of_an_object_repeats_it() -> None:
    table = rows([1, 2, 1, 3, 2], [0.0] * 5, [0.0] * 5)
    assert repeated_rows(table).tolist() == [False, False, True, False, True]


def test_strings_repeat_too() -> None:
    assert repeated_rows(rows(["a", "b", "a"], [0.0] * 3, [0.0] * 3)).tolist() == [False, False, True]


def test_a_scored_row_comes_before_an_unscored_one() -> None:
    table = rows([1, 1], [0.0] * 2, [0.0] * 2, [Flag.NO_IMAGE.bit, 0])
    assert repeated_rows(table).tolist() == [True, False]


def test_rows_known_as_duplicates_stay() -> None:
    table = rows([1, 1, 1], [0.0] * 3, [0.0] * 3, [0, Flag.DUPLICATE_ID.bit, 0])
    assert repeated_rows(table).tolist() == [False, False, True]


def test_repeats_are_counted_and_named_with_their_units() -> None:
    table = pa.concat_tables(
        [rows([7, 8], [0.0] * 2, [0.0] * 2, unit="aa"), rows([7], [0.0], [0.0], unit="bb", run="other")]
    )
    repeats = describe_repeats(table, repeated_rows(table))
    assert repeats.rows == 1
    assert repeats.examples == ("7 in run run unit aa and run other unit bb",)


def test_rows_are_sorted_by_sky_then_object() -> None:
    table = indexed(rows([3, 2, 1, 2], [0.0] * 4, [0.0] * 4), [5, 9, 5, 1])
    assert in_sky_order(table)["object_id"].to_pylist() == [2, 1, 3, 2]
    assert in_sky_order(table)["_healpix_29"].to_pylist() == [1, 5, 5, 9]


@pytest.mark.parametrize("ids", [[4, 5, 6], ["x", "y", "z é"]])
def test_a_file_reads_back_with_units_and_descriptions(ids: list[int] | list[str]) -> None:
    table = indexed(rows(ids, [1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], [0, Flag.NO_IMAGE.bit, 0]), [1, 2, 3])
    table = table.cast(catalog_schema(table.schema.field("object_id").type))
    back = pq.read_table(io.BytesIO(to_parquet(table)))
    assert back.equals(table)
    assert back.schema.field("ra").metadata[b"unit"] == b"deg"
    assert all(field.metadata[b"description"] for field in back.schema)


def test_a_file_takes_at_most_65_bytes_a_row() -> None:
    """The promise of issue 6, on positions and scores without structure; ids as surveys number them."""
    count = 200_000
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(50, 51, count), rng.uniform(-20, -19, count)
    table = rows(list(range(10**9, 10**9 + count)), ra, dec)
    noise = rng.normal(size=count).astype(np.float32)
    table = table.set_column(3, "logit", pa.array(noise)).set_column(4, "p_lsbg", pa.array(1 / (1 + np.exp(-noise))))
    table = in_sky_order(indexed(table, (rng.integers(0, 2**40, count) + 2**60).tolist()))
    data = to_parquet(table.cast(catalog_schema(pa.int64())))
    metadata = pq.read_metadata(io.BytesIO(data))
    assert len(data) / count < 65
    assert metadata.num_row_groups == 2
    encodings = {metadata.row_group(0).column(n).path_in_schema: metadata.row_group(0).column(n) for n in range(10)}
    assert "DELTA_BINARY_PACKED" in encodings["_healpix_29"].encodings
    assert "BYTE_STREAM_SPLIT" in encodings["ra"].encodings
    assert "RLE_DICTIONARY" in encodings["unit"].encodings


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=50))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_staged_is_gathered_in_order(tmp_path, numbers: list[int]) -> None:  # type: ignore[no-untyped-def]
    ra, dec = sky(len(numbers))
    table = rows(list(range(len(numbers))), ra, dec)
    url = str(tmp_path / "staged")
    data, pieces = split(table, np.array(numbers), url)
    storage.write(url, data)
    assert [piece.partition for piece in pieces] == sorted(set(numbers))
    for piece in pieces:
        expected = [row for row, number in enumerate(numbers) if number == piece.partition]
        assert gather([piece])["object_id"].to_pylist() == expected
        assert piece.rows == len(expected)
