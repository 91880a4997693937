"""Index, counts and partitions: against `hats`, and at the edges of the sky."""

from __future__ import annotations

import numpy as np
import pytest
from hats.pixel_math.partition_stats import generate_alignment
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows.catalog.alignment import SkyCount
from deepshadows.catalog.healpix import (
    COUNT_ORDER,
    INDEX_ORDER,
    Partition,
    count_pixels,
    is_placed,
    partition_numbers,
    spatial_index,
)
from deepshadows.outcomes import UsageError
from deepshadows.schema import Flag

RA = st.one_of(st.sampled_from([0.0, 360.0, 90.0, 180.0, 359.9999999999, 1e-300]), st.floats(0, 360))
DEC = st.one_of(st.sampled_from([-90.0, 90.0, 0.0, 41.8103148957786, -89.999999999]), st.floats(-90, 90))
POSITIONS = st.lists(st.tuples(RA, DEC), min_size=1, max_size=60)


def counted(index: np.ndarray) -> SkyCount:
    count = SkyCount()
    count.add(count_pixels(index))
    return count


@given(POSITIONS)
@settings(deadline=None)
def test_the_index_is_that_of_hats(positions: list[tuple[float, float]]) -> None:
    ra, dec = (np.array(values) for values in zip(*positions, strict=True))
    assert np.array_equal(spatial_index(ra, dec), compute_spatial_index(ra, dec))


def test_ra_360_is_ra_0() -> None:
    assert spatial_index(np.array([360.0]), np.array([12.5])) == spatial_index(np.array([0.0]), np.array([12.5]))


@pytest.mark.parametrize(
    ("ra", "dec", "flags", "placed"),
    [
        (10.0, 20.0, 0, True),
        (10.0, 20.0, Flag.NO_IMAGE.bit, True),
        (10.0, 20.0, Flag.BAD_POSITION.bit, False),
        (10.0, 20.0, Flag.NO_POSITION.bit, False),
        (np.nan, 20.0, 0, False),
        (10.0, np.nan, 0, False),
        (np.inf, 20.0, 0, False),
        (-1e-9, 20.0, 0, False),
        (360.0001, 20.0, 0, False),
        (10.0, -90.0001, 0, False),
        (360.0, 90.0, 0, True),
    ],
)
def test_what_has_a_place_on_the_sky(ra: float, dec: float, flags: int, placed: bool) -> None:
    assert is_placed(np.array([ra]), np.array([dec]), np.array([flags], np.int32)).tolist() == [placed]


@given(POSITIONS, st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_every_row_lies_in_its_partition_and_none_is_lost(
    positions: list[tuple[float, float]], partition_rows: int
) -> None:
    ra, dec = (np.array(values) for values in zip(*positions, strict=True))
    index = spatial_index(ra, dec)
    _, counts = count_pixels(index)
    partition_rows = max(partition_rows, int(counts.max()))
    partitions = counted(index).align(partition_rows)
    number = partition_numbers(index, partitions)
    for value, partition in zip(index, (partitions[n] for n in number), strict=True):
        assert value >> 2 * (INDEX_ORDER - partition.order) == partition.pixel
    assert np.bincount(number, minlength=len(partitions)).tolist() == [partition.rows for partition in partitions]
    assert all(0 < partition.rows <= partition_rows for partition in partitions)


def test_partitions_are_those_that_hats_finds_from_a_finer_order() -> None:
    rng = np.random.default_rng(1)
    index = spatial_index(rng.uniform(30, 60, 5000), rng.uniform(-20, 20, 5000))
    ours = counted(index).align(200)
    order = max(partition.order for partition in ours) + 1
    counts = counted(index).at_order(order)
    theirs = {tuple(entry) for entry in generate_alignment(counts, highest_order=order, threshold=200) if entry}
    assert {(partition.order, partition.pixel, partition.rows) for partition in ours} == theirs


def test_counts_add_up_at_every_order() -> None:
    rng = np.random.default_rng(2)
    count = SkyCount()
    for _ in range(3):
        count.add(count_pixels(spatial_index(rng.uniform(0, 360, 100), rng.uniform(-90, 90, 100))))
    count.add(count_pixels(np.empty(0, np.int64)))
    assert [int(count.at_order(order).sum()) for order in (0, 3, COUNT_ORDER)] == [300, 300, 300]
    assert len(count.at_order(3)) == 12 * 4**3


def test_no_rows_need_no_partitions() -> None:
    assert SkyCount().align(100) == []


def test_too_small_partitions_are_refused_with_the_number_to_give() -> None:
    index = spatial_index(np.full(50, 10.0), np.full(50, 20.0))
    with pytest.raises(UsageError, match="50 rows lie within one pixel"):
        counted(index).align(49)
    assert [partition.rows for partition in counted(index).align(50)] == [50]


def test_paths_are_those_of_hats() -> None:
    assert Partition(7, 123_456, 1).path == "dataset/Norder=7/Dir=120000/Npix=123456.parquet"
