"""Labels by position, everywhere on the sphere."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import example, given
from hypothesis import strategies as st

from deepshadows.outcomes import InputError
from deepshadows.sky.matching import checked_truth, label_by_truth, label_by_vetting, match


def truth(ra: list[float], dec: list[float], label: list[int | None], **more: list[float]) -> pa.Table:
    return pa.table({"ra": ra, "dec": dec, "label": pa.array(label, pa.int8()), **more})


@given(
    ra=st.floats(0, 360, exclude_max=True),
    dec=st.floats(-90, 90),
    angle=st.floats(0, 360),
    inside=st.floats(0.001, 0.999),
)
@example(ra=0.0, dec=0.0, angle=270.0, inside=0.9)
@example(ra=359.99999, dec=12.0, angle=90.0, inside=0.9)
@example(ra=17.0, dec=90.0, angle=200.0, inside=0.9)
@example(ra=17.0, dec=-89.99999, angle=180.0, inside=0.9)
def test_the_radius_is_the_same_everywhere(ra: float, dec: float, angle: float, inside: float) -> None:
    centre = SkyCoord(ra * u.deg, dec * u.deg)
    places = [centre.directional_offset_by(angle * u.deg, 3.0 * share * u.arcsec) for share in (inside, 2 - inside)]
    labels = label_by_truth(
        np.array([place.ra.deg for place in places]),
        np.array([place.dec.deg for place in places]),
        truth([ra], [dec], [1]),
        3.0,
    )
    assert labels.dtype == np.int8
    assert labels.tolist() == [1, 0]


def test_the_nearest_is_the_lsbg_and_its_neighbours_are_ambiguous() -> None:
    dec = np.array([0.0, 1.0, 2.0, 4.0]) / 3600
    labels = label_by_truth(np.full(4, 10.0), dec, truth([10.0], [0.9 / 3600], [1]), 3.0)
    assert labels.tolist() == [-1, 1, -1, 0]


def test_pieces_of_a_large_lsbg_are_ambiguous_not_artifacts() -> None:
    dec = np.array([0.5, 10.0, 16.0]) / 3600
    rows = truth([10.0], [0.0], [1], r_eff_arcsec=[10.0])
    assert label_by_truth(np.full(3, 10.0), dec, rows, 3.0).tolist() == [1, -1, 0]


def test_a_large_lsbg_without_a_detection_near_its_centre_claims_no_match() -> None:
    rows = truth([10.0], [0.0], [1], r_eff_arcsec=[10.0])
    assert label_by_truth(np.array([10.0]), np.array([8.0 / 3600]), rows, 3.0).tolist() == [-1]


def test_two_lsbgs_side_by_side_each_keep_their_own() -> None:
    dec = np.array([0.0, 2.0]) / 3600
    for order in ([0, 1], [1, 0]):
        rows = truth([10.0, 10.0], list(dec[order] + 0.1 / 3600), [1, 1])
        assert label_by_truth(np.full(2, 10.0), dec, rows, 3.0).tolist() == [1, 1]


def test_other_truth_rows_do_not_match() -> None:
    assert label_by_truth(np.array([10.0]), np.array([0.0]), truth([10.0], [0.0], [0]), 3.0).tolist() == [0]


def test_what_may_be_an_lsbg_is_no_artifact() -> None:
    rows = truth([10.0, 10.0], [0.0, 9.0 / 3600], [None, 1])
    dec = np.array([2.0, 4.0, 9.0]) / 3600
    assert label_by_truth(np.full(3, 10.0), dec, rows, 3.0).tolist() == [-1, 0, 1]


def test_vetted_objects_say_nothing_of_the_others() -> None:
    """On a line in arcseconds; the row at 2 has no detection of its own and speaks for none that has one."""
    found, seen = np.array([0.0, 4.0, 20.0, 30.0, 40.0]), np.array([0.2, 2.0, 4.0, 30.0, 40.0, 40.0, 50.0])
    rows = truth([10.0] * 7, list(seen / 3600), [1, 1, 0, None, 0, 1, 1])
    assert label_by_vetting(np.full(5, 10.0), found / 3600, rows, 3.0).tolist() == [1, 0, -2, -1, -1]
    assert label_by_vetting(np.full(1, 10.0), np.zeros(1), rows.slice(6), 3.0).tolist() == [-2]
    assert label_by_vetting(np.empty(0), np.empty(0), rows, 3.0).tolist() == []
    assert label_by_vetting(np.full(1, 10.0), np.zeros(1), truth([], [], []), 3.0).tolist() == [-2]


@pytest.mark.parametrize("label", [[1, 0, None], [1.0, 0.0, np.nan], [True, False, None]])
def test_labels_of_a_truth_are_one_and_zero_whatever_their_type(label: list[float | None]) -> None:
    table = pa.table({"ra": [1.0] * 3, "dec": [1.0] * 3, "label": label})
    assert checked_truth(table, "t")["label"].to_pylist() == [1, 0, None]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 1, 2], "t: column label does not hold .* but 2 too; give every class"),
        ([0.0, 0.7, 1.0], "but 0.7 too"),
        (["lsbg", "star", None], "but 'lsbg', 'star' too"),
        ([[1], [0], [0]], "t: column label does not hold 1"),
    ],
)
def test_other_labels_of_a_truth_are_refused_by_name(label: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_truth(pa.table({"ra": [1.0] * 3, "dec": [1.0] * 3, "label": label}), "t")


def test_nothing_to_label() -> None:
    assert label_by_truth(np.empty(0), np.empty(0), truth([10.0], [0.0], [1]), 3.0).shape == (0,)
    assert label_by_truth(np.array([1.0]), np.array([1.0]), truth([], [], []), 3.0).tolist() == [0]


def test_a_truth_table_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="label"):
        label_by_truth(np.array([1.0]), np.array([1.0]), pa.table({"ra": [1.0], "dec": [1.0]}), 3.0)


@given(
    ra=st.floats(0, 360, exclude_max=True),
    dec=st.floats(-90, 90),
    angle=st.floats(0, 360),
    share=st.floats(0, 0.999),
)
@example(ra=0.0, dec=0.0, angle=270.0, share=0.9)
@example(ra=359.9999999, dec=12.0, angle=90.0, share=0.9)
@example(ra=17.0, dec=90.0, angle=200.0, share=0.9)
@example(ra=17.0, dec=-90.0, angle=180.0, share=0.0)
def test_pairs_are_found_everywhere_within_the_radius_and_never_beyond(
    ra: float, dec: float, angle: float, share: float
) -> None:
    centre = SkyCoord(ra * u.deg, dec * u.deg)
    for distance, partner in ((share, 0), (2 - share, -1)):
        place = centre.directional_offset_by(angle * u.deg, distance * u.arcsec)
        found = match(np.array([place.ra.deg]), np.array([place.dec.deg]), np.array([ra]), np.array([dec]), 1.0)
        assert found.tolist() == [partner]


def test_the_closest_pair_is_made_first_and_leaves_the_other_its_second_choice() -> None:
    """On a line in arcseconds: true at 0 and 1.0, found at 0.6 and -0.9; 0.6 goes to 1.0, so 0 takes -0.9."""
    found, true = np.array([0.6, -0.9]) / 3600, np.array([0.0, 1.0]) / 3600
    at = np.full(2, 200.0)
    assert match(at, found, at, true, 1.0).tolist() == [1, 0]
    assert match(at, found, at, true, 0.5).tolist() == [-1, 0]
    assert match(at[:1], found[:1], at, true, 1.0).tolist() == [-1, 0], "one detection is not two LSBGs"
    assert match(at, np.zeros(2), at[:1], np.zeros(1), 1.0).tolist() == [0], "of equal distances the first"
    assert match(at[:0], found[:0], at, true, 1.0).tolist() == [-1, -1]


_OFFSETS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=8)


@given(_OFFSETS, _OFFSETS)
def test_no_pair_could_be_added_and_none_is_shared(
    found: list[tuple[float, float]], true: list[tuple[float, float]]
) -> None:
    points = [np.array(list_, dtype=float).reshape(-1, 2) / 3600 for list_ in (found, true)]
    partner = match(points[0][:, 0] % 360, points[0][:, 1], points[1][:, 0] % 360, points[1][:, 1], 1.0)
    used = partner[partner >= 0]
    assert len(set(used.tolist())) == len(used)
    separation = np.hypot(*(points[1][:, None] - points[0][None]).transpose(2, 0, 1)) * 3600
    for row, chosen in enumerate(partner):
        if chosen >= 0:
            assert separation[row, chosen] <= 1 + 1e-6
        else:
            free = np.setdiff1d(np.arange(len(points[0])), used)
            assert (separation[row, free] > 1 - 1e-6).all()
