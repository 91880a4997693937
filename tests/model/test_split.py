"""Validation rows are whole groups of the sky."""

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.model.split import hold_out, id_groups, same_position, sky_blocks


@given(st.lists(st.integers(0, 12), min_size=2, max_size=200), st.floats(0.05, 0.9), st.integers(0, 5))
def test_groups_stay_together(numbers: list[int], fraction: float, seed: int) -> None:
    groups = np.array(numbers, np.int64)
    held = hold_out(groups, fraction, seed)
    for group in set(numbers):
        assert len(set(held[groups == group])) == 1
    if len(set(numbers)) > 1:
        assert held.any()
        assert not held.all()
    np.testing.assert_array_equal(held, hold_out(groups, fraction, seed))


def test_the_share_held_out_is_the_one_wanted() -> None:
    assert np.count_nonzero(hold_out(np.arange(1000), 0.15, seed=1)) == 150


def test_a_field_with_most_of_the_rows_is_not_held_out() -> None:
    groups = np.r_[np.zeros(400, np.int64), np.arange(1, 101)]
    for seed in range(20):
        held = hold_out(groups, 0.25, seed)
        assert not held[:400].any()
        assert np.count_nonzero(held) == 100
    halves = np.repeat([0, 1], [60, 40])
    np.testing.assert_array_equal(hold_out(halves, 0.15, 1), halves == 1)


def test_blocks_shrink_until_there_are_enough() -> None:
    rng = np.random.default_rng(1)
    survey = sky_blocks(rng.uniform(0, 60, 5000), rng.uniform(-60, 0, 5000))
    tile = sky_blocks(rng.uniform(50, 50.7, 5000), rng.uniform(-30.7, -30, 5000))
    assert len(np.unique(survey)) > 1000  # blocks of a square degree
    assert 64 <= len(np.unique(tile)) <= 400


def test_neighbours_share_a_block_and_equal_positions_a_cell() -> None:
    ra, dec = np.array([50.0, 50.0, 120.0]), np.array([-30.0, -30.0, -30.0])
    cells = same_position(ra, dec)
    assert cells[0] == cells[1] != cells[2]
    edges = sky_blocks(np.array([0.0, 359.999, 360.0, 10.0]), np.array([-90.0, 90.0, 0.0, 89.9]))
    assert (edges >= 0).all()


@given(
    st.integers(0, 2**32),
    st.floats(0, 360, exclude_max=True),
    st.sampled_from([-89.9999, -30.0, 0.0, 60.0]),
    st.floats(0.05, 0.98),
)
def test_rows_within_an_arcsecond_are_one_place(seed: int, ra: float, dec: float, apart_arcsec: float) -> None:
    """Wherever they lie: at ra 0, near a pole, on the edge of a cell."""
    turn = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    here = SkyCoord(ra, dec, unit="deg")
    there = here.directional_offset_by(turn * units.rad, apart_arcsec * units.arcsec)
    far = here.directional_offset_by(turn * units.rad, 5 * units.arcsec)
    spots = SkyCoord([here, there, far])
    places = same_position(spots.ra.deg, spots.dec.deg)
    assert places[0] == places[1] != places[2]
    assert (places >= 0).all()


def test_ids_give_groups_that_no_sky_cell_has() -> None:
    groups = id_groups([17, "a", 17])
    assert groups[0] == groups[2] != groups[1]
    assert (groups < 0).all()
