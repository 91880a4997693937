"""Rows of a Parquet file by row group, read piece by piece or as one stream: the same rows."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import StorageError
from deepshadows.sky.row_groups import _Window, read_rows, row_groups, streamed_row_groups
from deepshadows.sky.shards import open_shard

ROWS, GROUP_ROWS = 95, 20


def table() -> pa.Table:
    rng = np.random.default_rng(5)
    return pa.table(
        {
            "object_id": np.arange(ROWS),
            "image": [rng.bytes(int(rng.integers(1, 400))) for _ in range(ROWS)],
            "name": [f"n{number % 7}" for number in range(ROWS)],  # with a dictionary page before its data
        }
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("groups") / "shard.parquet"
    pq.write_table(table(), path, row_group_size=GROUP_ROWS)
    return str(path)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, ROWS), rows=st.integers(0, ROWS + 10))
def test_any_range_of_rows_comes_out_in_order(local: str, first: int, rows: int) -> None:
    file, etag = open_shard(local), storage.stat(local).etag
    expected = table().slice(first, rows)
    for tables in (list(row_groups(file, first, rows)), list(streamed_row_groups(local, file, first, rows, etag))):
        assert sum(part.num_rows for part in tables) == expected.num_rows
        assert all(0 < part.num_rows <= GROUP_ROWS for part in tables)
        if tables:
            assert pa.concat_tables(tables).equals(expected)
    assert read_rows(file, first, rows, ["object_id"]).equals(expected.select(["object_id"]))
    assert read_rows(file, first, rows).equals(expected)


def test_a_stream_from_s3_gives_the_same_rows(bucket: str) -> None:
    sink = io.BytesIO()
    pq.write_table(table(), sink, row_group_size=GROUP_ROWS)
    url = storage.join(bucket, "shard.parquet")
    storage.write(url, sink.getvalue())
    tables = list(streamed_row_groups(url, open_shard(url), 7, 80, storage.stat(url).etag))
    assert pa.concat_tables(tables).equals(table().slice(7, 80))


def test_an_object_that_changed_since_the_plan_is_not_read(bucket: str) -> None:
    url = storage.join(bucket, "shard.parquet")
    for names in (table()["name"], table()["name"].to_pylist()[::-1]):
        sink = io.BytesIO()
        pq.write_table(table().set_column(2, "name", [names]), sink, row_group_size=GROUP_ROWS)
        storage.write(url, sink.getvalue())
        if not isinstance(names, list):
            planned = storage.stat(url).etag
            assert list(streamed_row_groups(url, open_shard(url), 0, ROWS, planned))
    with pytest.raises(StorageError, match=r"shard\.parquet"):
        list(streamed_row_groups(url, open_shard(url), 0, ROWS, planned))


def test_a_window_gives_the_bytes_that_are_there() -> None:
    window = _Window(size_bytes=100)
    window.show(20, memoryview(b"abcdefgh"))
    window.seek(22)
    assert (window.read(3), window.read(), window.tell()) == (b"cde", b"fgh", 28)
    window.seek(-80, io.SEEK_END)
    assert (window.read(-1), window.read(5)) == (b"abcdefgh", b"")


def test_bytes_that_have_gone_by_are_not_taken_again(local: str) -> None:
    stream = storage.ByteStream(local, 10, 400, storage.stat(local).etag)
    assert bytes(stream.take(20, 60)) == storage.read(local)[20:60]
    with pytest.raises(ValueError, match="gone by"):
        stream.take(50, 90)


def test_an_object_that_ends_early_is_a_storage_error(bucket: str) -> None:
    sink = io.BytesIO()
    pq.write_table(table(), sink, row_group_size=GROUP_ROWS)
    url = storage.join(bucket, "shard.parquet")
    storage.write(url, sink.getvalue())
    file = open_shard(url)
    storage.write(url, sink.getvalue()[:3000])
    with pytest.raises(StorageError, match=r"shard\.parquet"):
        list(streamed_row_groups(url, file, 0, ROWS, storage.stat(url).etag))
