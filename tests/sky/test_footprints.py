"""Owners of positions: the tile where each lies deepest, as astropy's WCS says it, anywhere on the sphere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepshadows.sky.footprints import Footprints, footprint, unit_vectors
from deepshadows.sky.tiles import BandSource, celestial_wcs, pixel_scale_arcsec

SCALE_DEG = 0.263 / 3600
CLOSE_ARCSEC = 1e-6


def source_of(
    ra: float,
    dec: float,
    *,
    shape: tuple[int, int] = (100, 120),
    scale: float = 1.0,
    rotation_deg: float = 0.0,
    projection: str = "TAN",
    cards: str = "CD",
) -> BandSource:
    """A tile of `scale` x 0.263 arcsec pixels; `cards` says how the header states its matrix."""
    turn = np.radians(rotation_deg)
    matrix = np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * SCALE_DEG * scale
    header = fits.Header()
    header.update({"NAXIS": 2, "CTYPE1": f"RA---{projection}", "CTYPE2": f"DEC--{projection}"})
    header.update({"CRVAL1": ra, "CRVAL2": dec, "CRPIX1": shape[1] / 2 + 3.5, "CRPIX2": shape[0] / 2 - 7.0})
    if cards == "CD":
        header.update({f"CD{i + 1}_{j + 1}": matrix[i, j] for i in range(2) for j in range(2)})
    else:
        header.update({"CDELT1": -SCALE_DEG * scale, "CDELT2": SCALE_DEG * scale})
        relative = matrix / np.array([[-SCALE_DEG * scale], [SCALE_DEG * scale]])
        header.update({f"PC{i + 1}_{j + 1}": relative[i, j] for i in range(2) for j in range(2)})
    text = str(header.tostring(endcard=False, padding=False))
    return BandSource(url="t", etag="", size_bytes=1, science_hdu=0, shape=shape, zero_point=30.0, wcs_header=text)


def wcs_of(source: BandSource) -> WCS:
    return celestial_wcs(fits.Header.fromstring(source.wcs_header), "t")


def depths(sources: list[BandSource], ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the edge of each tile by astropy, arcsec, negative outside; shape (tiles, N)."""
    found = []
    for source in sources:
        wcs = wcs_of(source)
        x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
        height, width = source.shape
        inside = np.minimum.reduce([x + 0.5, width - 0.5 - x, y + 0.5, height - 0.5 - y]) * pixel_scale_arcsec(wcs)
        found.append(np.where(np.isfinite(inside), inside, -1e9))
    return np.array(found)


tiles = st.tuples(
    st.floats(-150, 150),
    st.floats(-150, 150),
    st.fixed_dictionaries(
        {
            "rotation_deg": st.sampled_from([0.0, 30.0, 180.0, -77.0]),
            "scale": st.sampled_from([1.0, 0.6, 30.0]),
            "projection": st.sampled_from(["TAN", "TAN", "TAN", "SIN", "ZEA"]),
            "cards": st.sampled_from(["CD", "PC"]),
        }
    ),
)
"""Pixels east and north of a place, and the tile's own properties."""


def on_sky(ra: float, dec: float, east_pix: float, north_pix: float) -> tuple[float, float]:
    """A place some pixels from another, also past a pole."""
    at = dec + north_pix * SCALE_DEG
    over = abs(at) > 90
    at = np.sign(at) * 180 - at if over else at
    there = ra + 180 * over + east_pix * SCALE_DEG / max(np.cos(np.radians(at)), 1e-3)
    return there % 360.0, float(at)


@settings(max_examples=60, deadline=None)
@given(
    ra=st.sampled_from([0.0, 359.9999, 1e-9, 30.0, 180.0]),
    dec=st.sampled_from([-30.0, 0.0, 89.999, 90.0, -89.999, -90.0]),
    placed=st.lists(tiles, min_size=1, max_size=8),
    points=st.lists(st.tuples(st.floats(-200, 200), st.floats(-200, 200)), min_size=1, max_size=40),
)
def test_the_owner_is_the_tile_where_a_position_lies_deepest(
    ra: float, dec: float, placed: list[Any], points: list[tuple[float, float]]
) -> None:
    sources = [source_of(*on_sky(ra, dec, east, north), **tile) for east, north, tile in placed]
    at_ra, at_dec = np.array([on_sky(ra, dec, *point) for point in points]).T
    owner, depth = Footprints(sources).owners(at_ra, at_dec)
    expected = depths(sources, at_ra, at_dec)
    best = expected.max(axis=0)
    clear = np.abs(best) > CLOSE_ARCSEC
    assert ((owner >= 0) == (best > 0))[clear].all()
    assert depth[clear & (best > 0)] == pytest.approx(best[clear & (best > 0)], abs=CLOSE_ARCSEC)
    alone = clear & (best > 0) & ((expected > best - CLOSE_ARCSEC).sum(axis=0) == 1)
    assert (owner[alone] == expected.argmax(axis=0)[alone]).all()


@pytest.mark.parametrize("cards", ["CD", "PC"])
@pytest.mark.parametrize("dec", [-89.9, 0.0, 45.0, 89.9])
def test_the_matrix_gives_astropys_pixels(cards: str, dec: float) -> None:
    source = source_of(359.999, dec, shape=(3000, 4000), rotation_deg=12.0, cards=cards)
    at = footprint(source)
    assert at.matrix is not None
    x, y = np.meshgrid(np.linspace(-0.5, 3999.5, 9), np.linspace(-0.5, 2999.5, 7))
    ra, dec_deg = wcs_of(source).all_pix2world(x.ravel(), y.ravel(), 0)
    vectors = unit_vectors(ra, dec_deg).T
    x_w, y_w, w = at.matrix @ vectors
    assert x_w / w == pytest.approx(x.ravel(), abs=1e-6)
    assert y_w / w == pytest.approx(y.ravel(), abs=1e-6)
    assert at.pixel_scale_arcsec == pytest.approx(pixel_scale_arcsec(wcs_of(source)), rel=1e-12)
    distance = np.arccos(np.clip(at.centre @ vectors, -1, 1))
    assert (distance <= at.radius_rad).all()
    assert distance.max() == pytest.approx(at.radius_rad, rel=2e-3)


SIP = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 1e-5, "B_ORDER": 2, "B_0_2": 1e-5}


def changed(source: BandSource, change: dict[str, object]) -> BandSource:
    """With these cards in its header."""
    header = fits.Header.fromstring(source.wcs_header)
    header.update(change)
    return replace(source, wcs_header=str(header.tostring(endcard=False, padding=False)))


@pytest.mark.parametrize(
    "change",
    [
        {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.001, "PV2_1": 1.0},
        SIP,
        {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"},
        {"LONPOLE": 90.0},
        {"CRVAL2": 90.0},
        {"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CD1_1": -0.263, "CD2_2": 0.263},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN"},
    ],
)
def test_what_is_not_plain_gnomonic_is_left_to_astropy(change: dict[str, object]) -> None:
    plain = source_of(30.0, -30.0)
    assert footprint(plain).matrix is not None
    assert footprint(changed(plain, change)).matrix is None


def test_on_a_distorted_tile_a_depth_does_not_depend_on_the_other_positions() -> None:
    source = changed(source_of(30.0, -30.0), {**SIP, "A_2_0": 1e-3, "B_0_2": 1e-3})
    x, y = np.meshgrid(np.linspace(5, 110, 6), np.linspace(5, 90, 5))
    ra, dec = wcs_of(source).all_pix2world(x.ravel(), y.ravel(), 0)
    owners = Footprints([source]).owners
    alone = [owners(ra[row : row + 1], dec[row : row + 1])[1][0] for row in range(len(ra))]
    assert owners(ra, dec)[1].tolist() == alone


def test_many_tiles_over_one_place_are_all_looked_at() -> None:
    """Thirty tiles upon each other, more than are asked for at first: the one that is centred owns the place."""
    sources = [source_of(10.0, 20.0 + number * SCALE_DEG) for number in range(30)]
    wcs = wcs_of(sources[17])
    ra, dec = wcs.all_pix2world([59.5], [49.5], 0)
    owner, depth = Footprints(sources).owners(ra, dec)
    assert owner.tolist() == [17]
    assert depth == pytest.approx([50 * 0.263], rel=1e-6)


def test_of_equal_depths_the_first_tile_wins_and_no_tile_is_no_owner() -> None:
    twins = [source_of(10.0, 20.0)] * 3
    ra, dec = wcs_of(twins[0]).all_pix2world([5.0, 500.0], [5.0, 5.0], 0)
    assert Footprints(twins).owners(ra, dec)[0].tolist() == [0, -1]
    nothing = Footprints([]).owners(ra, dec)
    assert nothing[0].tolist() == [-1, -1]
    assert Footprints(twins).owners(np.empty(0), np.empty(0))[0].shape == (0,)
