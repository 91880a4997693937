"""Cones: all rows within, none of those outside, whichever way they are told."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows.catalog.cones import MOST_RANGES, Cone, parse_cone
from deepshadows.catalog.healpix import SKY_END, spatial_index
from deepshadows.outcomes import UsageError


@given(
    st.floats(0, 360),
    st.one_of(st.sampled_from([-90.0, 90.0, 0.0, 89.9999]), st.floats(-90, 90)),
    st.floats(-3, np.log10(648_000)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_its_ranges_hold_every_row_within(ra_deg: float, dec_deg: float, log_radius: float, seed: int) -> None:
    cone = Cone(ra_deg=ra_deg, dec_deg=dec_deg, radius_arcsec=10**log_radius)
    rng = np.random.default_rng(seed)
    near = rng.normal(0, 10**log_radius / 3600, (2, 500))
    dec = np.clip(dec_deg + near[0], -90, 90)
    ra = (ra_deg + near[1] / np.maximum(np.cos(np.radians(dec)), 1e-9)) % 360
    inside = cone.holds(pa.table({"ra": ra, "dec": dec}))
    index = spatial_index(ra, dec)[inside]
    ranges = cone.ranges()
    assert len(ranges) <= MOST_RANGES
    assert (ranges[:, 0] < ranges[:, 1]).all()
    assert (ranges[1:, 0] > ranges[:-1, 1]).all()
    assert ((index[:, None] >= ranges[:, 0]) & (index[:, None] < ranges[:, 1])).any(axis=1).all()


def test_its_ranges_are_little_more_than_it() -> None:
    for ra_deg, dec_deg in ((10, 0), (200, 60), (45, -41.8), (0, 89.99)):
        cone = Cone(ra_deg=ra_deg, dec_deg=dec_deg, radius_arcsec=600)
        share = np.diff(cone.ranges()).sum() / SKY_END
        assert share < 4 * (1 - np.cos(np.radians(600 / 3600))) / 2


def test_a_cone_is_read() -> None:
    assert parse_cone("54.62, -35.45,60") == Cone(ra_deg=54.62, dec_deg=-35.45, radius_arcsec=60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10,20", "give RA_DEG,DEC_DEG,RADIUS_ARCSEC"),
        ("a,b,c", "give RA_DEG,DEC_DEG,RADIUS_ARCSEC"),
        ("361,0,1", "the right ascension 361 is not between 0 and 360"),
        ("-1,0,1", "the right ascension -1 is not between"),
        ("10,91,1", "the declination 91 is not between -90 and 90"),
        ("10,0,0", "the radius in arcsec 0 is not between"),
        ("10,0,700000", "the radius in arcsec 700000 is not between"),
        ("nan,0,1", "the right ascension nan"),
        ("10,0,inf", "the radius in arcsec inf"),
    ],
)
def test_a_cone_out_of_range_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_cone(text)
