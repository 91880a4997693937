"""Completeness by what objects look like, with binomial intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.model.completeness import PROPERTIES, Property, in_bins, wilson

MAG, SIZE = PROPERTIES[2], PROPERTIES[1]


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0), (0, 1, 0.0, 0.7935)],
)
def test_intervals_are_wilsons(part: int, whole: int, low: float, high: float) -> None:
    """By hand: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n), z = 1.96."""
    assert wilson(part, whole) == pytest.approx((low, high), abs=1e-4)


def test_three_of_four_by_hand() -> None:
    values = np.array([20.1, 20.4, 20.49, 20.0, 22.3, np.nan])
    detected = np.array([True, True, True, False, True, True])
    selected = np.array([True, True, False, False, True, True])
    bins = in_bins(values, detected, selected, MAG)
    assert [(one.low, one.high, one.n, one.detected, one.selected) for one in bins] == [
        (20.0, 20.5, 4, 3, 2),
        (22.0, 22.5, 1, 1, 1),
    ]
    record = bins[0].record()
    assert (record["completeness"], record["detected_share"]) == (0.5, 0.75)
    assert record["completeness_lo"] < 0.5 < record["completeness_hi"]


def test_sizes_are_binned_by_factors_of_the_square_root_of_two() -> None:
    always = np.full(5, True)
    bins = in_bins(np.array([2.0, 2.7, 4.0, 0.0, -1.0]), always, always, SIZE)
    assert [one.n for one in bins] == [2, 1]
    assert [one.low for one in bins] == pytest.approx([2.0, 4.0])
    assert [one.high for one in bins] == pytest.approx([2 * 2**0.5, 4 * 2**0.5])


def test_without_values_there_are_no_bins() -> None:
    for by in (MAG, SIZE):
        assert in_bins(np.array([np.nan]), np.array([True]), np.array([True]), by) == []
        assert in_bins(np.empty(0), np.empty(0, bool), np.empty(0, bool), by) == []


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=50), st.sampled_from(PROPERTIES))
def test_every_object_with_a_value_is_in_one_bin(values: list[float], by: Property) -> None:
    array = np.array(values)
    chosen = array > np.median(array)
    bins = in_bins(array, array > 0, chosen, by)
    assert sum(one.n for one in bins) == sum(one.detected for one in bins) == len(values)
    assert sum(one.selected for one in bins) == np.count_nonzero(chosen)
    assert all(one.low < one.high for one in bins)
