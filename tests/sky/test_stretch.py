"""The stretch against values worked out by hand from the viewer's formula (DOMAIN section 2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.outcomes import InputError
from deepshadows.sky.stretch import DES, HSC, stretch_named

BANDS = ("z", "r", "g")


def by_hand(z: float, r: float, g: float) -> list[int]:
    v = [2.2 * z + 0.03, 3.4 * r + 0.03, 6.0 * g + 0.03]
    intensity = sum(max(0.0, x) for x in v) / 3
    return [int(255 * min(1.0, max(0.0, x * math.asinh(20 * intensity) / (math.sqrt(20) * intensity)))) for x in v]


def test_blank_sky_is_32_in_each_channel() -> None:
    # v = 0.03, I = 0.03: 0.03 * asinh(0.6) / (sqrt(20) * 0.03) = 0.5688 / 4.4721 = 0.1272; times 255 = 32.4
    assert DES.apply(np.zeros((1, 3), np.float32), BANDS).tolist() == [[32, 32, 32]]


@pytest.mark.parametrize("flux", [(0.0132, 0.0132, 0.0132), (0.2, 0.1, 0.05), (5.0, 0.0, 0.0), (-0.02, 0.0, 0.03)])
def test_pixels_are_those_of_the_formula(flux: tuple[float, float, float]) -> None:
    assert DES.apply(np.array([flux], np.float32), BANDS).tolist() == [by_hand(*flux)]


def test_a_pixel_brighter_than_white_is_clipped() -> None:
    assert DES.apply(np.full((1, 3), 1e4, np.float32), BANDS).tolist() == [[255, 255, 255]]


def test_a_pixel_without_positive_light_is_black_not_nan() -> None:
    assert DES.apply(np.full((1, 3), -1.0, np.float32), BANDS).tolist() == [[0, 0, 0]]


def test_hsc_is_five_times_des() -> None:
    assert all(HSC.scales[band] == pytest.approx(5 * DES.scales[band]) for band in "grz")


@given(st.lists(st.floats(-1, 100, width=32), min_size=3, max_size=60).filter(lambda x: len(x) % 3 == 0))
def test_a_pixel_does_not_depend_on_its_neighbours(values: list[float]) -> None:
    flux = np.array(values, np.float32).reshape(-1, 3)
    together = DES.apply(flux, BANDS)
    assert all((DES.apply(flux[row : row + 1], BANDS) == together[row]).all() for row in range(len(flux)))


def test_an_unknown_stretch_is_refused() -> None:
    with pytest.raises(InputError, match="des-1"):
        stretch_named("des-99")
