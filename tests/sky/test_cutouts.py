"""Cut-outs: grid, edges, masks, resampling; the same pixels however many are cut."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import Sip
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows.schema import Flag
from deepshadows.sky.cutouts import Geometry, bring_to_field, cut, cut_parts
from deepshadows.sky.resampling import resampling_weights
from deepshadows.sky.stretch import DES, HSC
from deepshadows.sky.tiles import Tile
from tests.sky.tile_files import tan_wcs

GEOMETRY = Geometry(stretch=DES)
BANDS = GEOMETRY.bands


def tile_of(flux: np.ndarray, scale_arcsec: float = 0.263, valid: np.ndarray | None = None) -> Tile:
    return Tile(
        tile_id="T",
        bands=BANDS,
        flux=flux.astype(np.float32),
        valid=np.ones(flux.shape, bool) if valid is None else valid,
        saturated=np.zeros(flux.shape, bool),
        wcs=tan_wcs(flux.shape[1:], scale_arcsec=scale_arcsec),
        pixel_scale_arcsec=scale_arcsec,
    )


def random_tile(shape: tuple[int, int] = (301, 400), scale_arcsec: float = 0.263) -> Tile:
    return tile_of(np.random.default_rng(0).normal(0.01, 0.01, (3, *shape)), scale_arcsec)


def sky(tile: Tile, x: list[float] | np.ndarray, y: list[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = tile.wcs.all_pix2world(np.asarray(x, float), np.asarray(y, float), 0)
    return ra, dec


def test_pixels_are_means_of_2x2_on_a_grid_anchored_at_pixel_0() -> None:
    tile = random_tile((300, 400))
    stack = cut(tile, *sky(tile, [200.2], [150.4]), GEOMETRY)
    top, left = 150 - 64, 200 - 64  # the even grid line nearest to the position, 32 bins before it
    window = tile.flux[:, top : top + 128, left : left + 128].astype(np.float64)
    means = window.reshape(3, 64, 2, 64, 2).mean((2, 4))
    expected = DES.apply(np.moveaxis(means, 0, -1).astype(np.float32), BANDS)
    assert np.abs(stack.images[0][::-1].astype(int) - expected).max() <= 1, "row 0 is north, the last row of the tile"
    assert (stack.images[0][::-1] == expected).mean() > 0.999
    assert stack.flags.tolist() == [0]


@pytest.mark.parametrize("scale", [0.2595, 0.263, 0.2645])
def test_fluxes_of_the_stretch_s_own_pixels_are_taken_as_they_are(scale: float) -> None:
    tile = random_tile((128, 128), scale)
    image = cut(tile, *sky(tile, [63.5], [63.5]), GEOMETRY).images[0]
    upper, lower = (tile.flux[:, row::2, ::2] + tile.flux[:, row::2, 1::2] for row in (0, 1))
    assert (image[::-1] == DES.apply(np.moveaxis((upper + lower) / np.float32(4), 0, -1), BANDS)).all()


@pytest.mark.parametrize("scale", [0.262, 0.2645, 0.266])
def test_binned_and_resampled_fluxes_are_brought_to_the_stretch_s_pixels(scale: float) -> None:
    flux = np.full((3, 300, 300), 0.004 * (scale / HSC.pixel_scale_arcsec) ** 2)
    tile = tile_of(flux, scale)
    image = cut(tile, *sky(tile, [150], [150]), Geometry(stretch=HSC)).images[0]
    expected = HSC.apply(np.full((1, 3), 0.004, np.float32), BANDS)[0]
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_the_object_is_within_half_a_bin_of_the_centre() -> None:
    flux = np.zeros((3, 300, 400))
    flux[:, 151, 231] = 1.0
    tile = tile_of(flux)
    image = cut(tile, *sky(tile, [231], [151]), GEOMETRY).images[0, :, :, 1]
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    assert abs(row - 31.5) <= 0.5 + 1e-9
    assert abs(column - 31.5) <= 0.5 + 1e-9


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-30, 430), st.floats(-30, 330)), min_size=1, max_size=40),
    st.sampled_from([0.263, 0.2637, 0.168]),
)
def test_dense_sparse_and_order_give_identical_pixels(points: list[tuple[float, float]], scale: float) -> None:
    tile = random_tile(scale_arcsec=scale)
    ra, dec = sky(tile, *np.array(points).T)
    filler = sky(tile, np.linspace(50, 350, 60), np.full(60, 150.0))
    together = cut(tile, np.concatenate([ra, filler[0]]), np.concatenate([dec, filler[1]]), GEOMETRY)
    backwards = cut(tile, ra[::-1], dec[::-1], GEOMETRY)
    assert (together.images[: len(ra)] == backwards.images[::-1]).all()
    assert (together.flags[: len(ra)] == backwards.flags[::-1]).all()
    for row in range(len(ra)):
        alone = cut(tile, ra[row : row + 1], dec[row : row + 1], GEOMETRY)
        assert (alone.images[0] == together.images[row]).all()
        assert alone.flags[0] == together.flags[row]


def test_on_a_distorted_tile_a_cutout_does_not_depend_on_the_others() -> None:
    """Where astropy inverts the WCS by iteration."""
    tile = random_tile(scale_arcsec=0.168)
    bend = np.zeros((3, 3))
    bend[2, 0] = 1e-3  # 40 px at the edge
    tile.wcs.sip = Sip(bend, bend.T, None, None, tile.wcs.wcs.crpix)
    x, y = np.meshgrid(np.linspace(40, 360, 5), np.linspace(40, 260, 3))
    ra, dec = sky(tile, x.ravel(), y.ravel())
    together = cut(tile, ra, dec, GEOMETRY)
    for row in range(len(ra)):
        alone = cut(tile, ra[row : row + 1], dec[row : row + 1], GEOMETRY)
        assert (alone.images[0] == together.images[row]).all()


@pytest.mark.parametrize("sign_x", [-1, 1])
@pytest.mark.parametrize("sign_y", [-1, 1])
@pytest.mark.parametrize("scale", [0.263, 0.168])
def test_north_is_up_and_east_is_left_whatever_the_parity_of_the_tile(sign_x: int, sign_y: int, scale: float) -> None:
    tile = tile_of(np.zeros((3, 400, 400)), scale)
    tile.wcs.wcs.cd = np.diag([sign_x * scale, sign_y * scale]) / 3600
    tile.wcs.wcs.set()
    centre = tile.wcs.all_pix2world([[200.0, 200.0]], 0)[0]
    north_east = centre + np.array([1 / np.cos(np.radians(centre[1])), 1]) * 8 / 3600
    x, y = np.rint(tile.wcs.all_world2pix([north_east], 0)[0]).astype(int)
    tile.flux[:, y, x] = 1.0
    image = cut(tile, centre[:1], centre[1:], GEOMETRY).images[0, :, :, 1]
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    assert row < 31
    assert column < 31


def test_a_field_over_the_edge_is_reflected_and_says_so() -> None:
    tile = random_tile((300, 400))
    stack = cut(tile, *sky(tile, [10], [150]), GEOMETRY)
    assert Flag.names(int(stack.flags[0])) == ["PARTIAL_FIELD"]
    outside = 32 - 5  # bins of the field that lie left of the tile: position 10.5 px is 5.25 bins inside
    image = stack.images[0]
    assert (image[:, :outside][:, ::-1] == image[:, outside : 2 * outside]).all()


@pytest.mark.parametrize(("x", "y"), [(-1.0, 150), (400.0, 150), (200, -0.6), (200, 299.6), (5000, 5000)])
def test_a_position_off_the_tile_is_fatal(x: float, y: float) -> None:
    tile = random_tile((300, 400))
    stack = cut(tile, *sky(tile, [x, 200], [y, 150]), GEOMETRY)
    assert Flag.names(int(stack.flags[0])) == ["OFF_TILE"]
    assert not stack.images[0].any()
    assert stack.flags[1] == 0


def test_a_tile_smaller_than_a_field_is_reflected_again_and_again() -> None:
    tile = random_tile((40, 51))
    x, y = [500.0, 20.0, 3.0, 900.0], [10.0, 20.0, 39.0, 10.0]
    parts = list(cut_parts(tile, *sky(tile, x, y), GEOMETRY, rows=1))
    assert [Flag.names(int(part.flags[0])) for part in parts] == [["OFF_TILE"], *[["PARTIAL_FIELD"]] * 2, ["OFF_TILE"]]
    assert all(part.images.any() != (part.flags[0] == Flag.OFF_TILE.bit) for part in parts)
    rows = parts[1].images[0][:, 32]
    assert len(np.unique(rows, axis=0)) <= 20, "the tile has 20 rows of bins"


def test_masked_pixels_are_left_out_of_the_mean_and_flagged() -> None:
    flux = np.full((3, 300, 400), 0.02)
    valid = np.ones(flux.shape, bool)
    valid[0, 150, 200] = False
    flux[0, 150, 200] = 0
    tile = tile_of(flux, valid=valid)
    stack = cut(tile, *sky(tile, [200, 20], [150, 20]), GEOMETRY)
    assert Flag.names(int(stack.flags[0])) == ["SOME_MASKED"]
    assert len(np.unique(stack.images[0].reshape(-1, 3), axis=0)) == 1  # the mean of the other three is the same
    assert Flag.names(int(stack.flags[1])) == ["PARTIAL_FIELD"]


@pytest.mark.parametrize("scale", [0.263, 0.168])
def test_a_band_without_any_valid_pixel_is_fatal_and_blank(scale: float) -> None:
    valid = np.ones((3, 500, 500), bool)
    valid[2] = False
    tile = tile_of(np.where(valid, 0.02, 0), scale, valid)
    stack = cut(tile, *sky(tile, [250], [250]), GEOMETRY)
    assert "ALL_MASKED" in Flag.names(int(stack.flags[0]))
    assert not stack.images.any()


def test_valid_pixels_just_outside_a_masked_field_do_not_save_it() -> None:
    valid = np.zeros((3, 500, 500), bool)
    valid[:, :, :140] = True  # the field reaches from column 150 to 350
    tile = tile_of(np.where(valid, 0.02, 0), 0.168, valid)
    stack = cut(tile, *sky(tile, [241.5], [250]), GEOMETRY)
    assert "ALL_MASKED" in Flag.names(int(stack.flags[0]))


def test_saturation_is_told() -> None:
    tile = random_tile((300, 400))
    tile.saturated[1, 140, 190] = True
    stack = cut(tile, *sky(tile, [200, 330], [150, 230]), GEOMETRY)
    assert [Flag.names(int(flags)) for flags in stack.flags] == [["SATURATED"], []]


@pytest.mark.parametrize("pitch", [0.83, 1.0, 1.33, 2.0, 3.12])
def test_resampling_weights_add_up_to_one(pitch: float) -> None:
    weights = resampling_weights(101.3, pitch, 64, int(101.3 - 32 * pitch) - 2, int(64 * pitch) + 6)
    assert np.allclose(weights.sum(1), 1)


@pytest.mark.parametrize("scale", [0.1, 0.168, 0.25, 0.396, 0.7])
def test_surface_brightness_survives_resampling(scale: float) -> None:
    per_arcsec2 = 0.01 / 0.262**2
    tile = tile_of(np.full((3, 700, 700), per_arcsec2 * scale**2), scale)
    stack = cut(tile, *sky(tile, [350], [350]), GEOMETRY)
    expected = DES.apply(np.full((1, 3), 0.01, np.float32), BANDS)[0]
    assert np.abs(stack.images[0].astype(int) - expected).max() <= 1
    assert "RESAMPLED" in Flag.names(int(stack.flags[0]))


def test_resampled_objects_keep_their_size_on_the_sky() -> None:
    def width_pix(scale: float) -> float:
        shape = (int(120 / scale),) * 2
        y, x = np.indices(shape) - (np.array(shape)[:, None, None] - 1) / 2
        blob = 0.02 * np.exp(-(x**2 + y**2) * scale**2 / (2 * 3.0**2)) * (scale / 0.262) ** 2
        tile = tile_of(np.stack([blob] * 3), scale)
        image = cut(tile, *sky(tile, [(shape[1] - 1) / 2], [(shape[0] - 1) / 2]), GEOMETRY).images[0, :, :, 1]
        return float((image > 100).sum())

    assert width_pix(0.168) == pytest.approx(width_pix(0.262), rel=0.05)
    assert width_pix(0.396) == pytest.approx(width_pix(0.262), rel=0.05)


def test_images_of_the_network_s_field_are_left_alone() -> None:
    images = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), np.uint8)
    out, flags = bring_to_field(images, np.array([33.5, 33.4]), GEOMETRY)
    assert (out == images).all()
    assert flags.tolist() == [0, 0]


def test_other_fields_are_cropped_or_reflected() -> None:
    images = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), np.uint8)
    out, flags = bring_to_field(images, np.array([67.0, 30.0]), GEOMETRY)
    assert Flag.names(int(flags[0])) == ["RESAMPLED"]
    assert Flag.names(int(flags[1])) == ["PARTIAL_FIELD", "RESAMPLED"]
    centre = images[0, 16:48, 16:48].astype(float)
    assert np.abs(out[0].astype(float).mean((0, 1)) - centre.mean((0, 1))).max() < 3
