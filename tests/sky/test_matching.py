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
from deepshadows.sky.matching import label_by_truth


def truth(ra: list[float], dec: list[float], label: list[int], **more: list[float]) -> pa.Table:
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


def test_nothing_to_label() -> None:
    assert label_by_truth(np.empty(0), np.empty(0), truth([10.0], [0.0], [1]), 3.0).shape == (0,)
    assert label_by_truth(np.array([1.0]), np.array([1.0]), truth([], [], []), 3.0).tolist() == [0]


def test_a_truth_table_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="label"):
        label_by_truth(np.array([1.0]), np.array([1.0]), pa.table({"ra": [1.0], "dec": [1.0]}), 3.0)
