"""Tiles and their index: what real FITS files hold, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import TileFiles, read_tile
from tests.sky.tile_files import noise, tan_wcs, write_band, write_tile


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz", ".fits.gz"])
def test_plain_and_fpacked_tiles_read_alike(place: str, tmp_path: Path, suffix: str) -> None:
    write_tile(tmp_path / "made", suffix=suffix)
    for path in (tmp_path / "made").iterdir():
        storage.write(storage.join(place, "tiles", path.name), path.read_bytes())
    index = scan_tiles(storage.join(place, "tiles"))
    assert index.problems == ()
    assert [tile.tile_id for tile in index.tiles] == ["T1"]
    tile = read_tile(index.tiles[0], ("z", "r", "g"))
    assert tile.flux.shape == (3, 300, 320)
    assert tile.flux[2] == pytest.approx(noise((300, 320), 0) / 1000, rel=1e-6)  # zero point 30: 1000 a nanomaggy
    assert tile.pixel_scale_arcsec == pytest.approx(0.263)
    assert tile.valid.all()


def test_what_is_masked_nan_zero_or_without_weight_is_not_valid(tmp_path: Path) -> None:
    shape = (100, 100)
    science = noise(shape, 1)
    science[0, 0], science[1, 1] = np.nan, 0.0
    weight, mask = np.ones(shape, np.float32), np.zeros(shape, np.int32)
    weight[2, 2], mask[3, 3], mask[4, 4] = 0, 1, 2  # bit 2 is SATBIT
    write_band(tmp_path / "T_g.fits", science, wcs=tan_wcs(shape), weight=weight, mask=mask)
    tile = read_tile(scan_tiles(str(tmp_path)).tiles[0], ("g",))
    assert np.argwhere(~tile.valid[0]).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert np.argwhere(tile.saturated[0]).tolist() == [[4, 4]]
    assert (tile.flux[0][~tile.valid[0]] == 0).all()


@pytest.mark.parametrize(("dither", "zeros_are_valid"), [(-1, True), (2, False)])
def test_zeros_of_rounded_pixels_are_values_and_other_zeros_are_not(
    tmp_path: Path, dither: int, zeros_are_valid: bool
) -> None:
    science = noise((100, 100), 1)
    science[7, 7] = 0
    header = tan_wcs((100, 100)).to_header()
    header.update({"BAND": "g", "MAGZERO": 30.0})
    image = fits.CompImageHDU(science, header, compression_type="RICE_1", quantize_level=16, quantize_method=dither)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "T_g.fits.fz")
    tile = read_tile(scan_tiles(str(tmp_path)).tiles[0], ("g",))
    assert bool(tile.valid[0, 7, 7]) is zeros_are_valid
    assert (~tile.valid).sum() == (0 if zeros_are_valid else 1)


def test_only_the_bad_planes_of_an_lsst_mask_count(tmp_path: Path) -> None:
    shape = (50, 50)
    mask = np.zeros(shape, np.int32)
    mask[1, 1], mask[2, 2], mask[3, 3] = 1 << 5, 1 << 0, 1 << 1
    write_band(tmp_path / "T_g.fits", noise(shape, 1), wcs=tan_wcs(shape), mask=mask)
    with fits.open(tmp_path / "T_g.fits", mode="update") as hdus:
        hdus["MSK"].header.update({"MP_BAD": 0, "MP_SAT": 1, "MP_DETECTED": 5})
    tile = read_tile(scan_tiles(str(tmp_path)).tiles[0], ("g",))
    assert np.argwhere(~tile.valid[0]).tolist() == [[2, 2]]
    assert np.argwhere(tile.saturated[0]).tolist() == [[3, 3]]


def test_a_saturate_keyword_that_is_text_is_no_limit(tmp_path: Path) -> None:
    write_band(tmp_path / "T_g.fits", noise((50, 50), 1), wcs=tan_wcs((50, 50)), saturate="n/a")
    assert not read_tile(scan_tiles(str(tmp_path)).tiles[0], ("g",)).saturated.any()


def test_saturate_keyword_marks_pixels(tmp_path: Path) -> None:
    science = noise((50, 50), 1)
    science[7, 8] = 1000
    write_band(tmp_path / "T_g.fits", science, wcs=tan_wcs((50, 50)), saturate=900)
    tile = read_tile(scan_tiles(str(tmp_path)).tiles[0], ("g",))
    assert np.argwhere(tile.saturated[0]).tolist() == [[7, 8]]


def test_a_cube_and_a_file_of_many_hdus_hold_several_bands(tmp_path: Path) -> None:
    cube = np.stack([noise((60, 50), seed) for seed in range(3)])
    header = tan_wcs((60, 50)).to_header()
    header.update({"BANDS": "grz", "BUNIT": "nanomaggy"})
    fits.PrimaryHDU(cube, header).writeto(tmp_path / "cube.fits")
    hdus: list[fits.hdu.base.ExtensionHDU] = [fits.PrimaryHDU()]
    for band in "grz":
        header = tan_wcs((60, 50), ra=31).to_header()
        header.update({"BAND": band, "MAGZERO": 22.5})
        hdus += [
            fits.ImageHDU(noise((60, 50), 1), header, name="SCI"),
            fits.ImageHDU(np.ones((60, 50)), header, name="WGT"),
        ]
    fits.HDUList(hdus).writeto(tmp_path / "many.fits")
    index = scan_tiles(str(tmp_path))
    assert [(tile.tile_id, sorted(tile.bands)) for tile in index.tiles] == [
        ("cube", ["g", "r", "z"]),
        ("many", ["g", "r", "z"]),
    ]
    assert read_tile(index.tiles[0], ("z",)).flux[0] == pytest.approx(cube[2])
    assert index.tiles[1].bands["r"].weight_hdu == 4


def test_the_index_as_a_table_has_a_row_for_each_tile_and_band(tmp_path: Path) -> None:
    write_tile(tmp_path, "A")
    write_tile(tmp_path, "B", ra=30.02)
    rows = scan_tiles(str(tmp_path)).to_table().to_pylist()
    assert [(row["tile"], row["band"]) for row in rows] == [(tile, band) for tile in "AB" for band in "grz"]
    assert rows[3]["ra_center"] == pytest.approx(30.02, abs=1e-4)
    assert [row["pixel_scale_arcsec"] for row in rows] == pytest.approx([0.263] * 6)


def _problem(folder: Path) -> str:
    index = scan_tiles(str(folder))
    assert index.tiles == ()
    ((url, reason),) = index.problems
    assert url in reason
    return reason


def test_no_wcs_no_zero_point_and_not_fits_are_named(tmp_path: Path) -> None:
    write_band(tmp_path / "a" / "T_g.fits", noise((20, 20), 1), wcs=None)
    assert "WCS" in _problem(tmp_path / "a")
    write_band(tmp_path / "b" / "T_g.fits", noise((20, 20), 1), wcs=tan_wcs((20, 20)), zero_point=None)
    assert "--zero-point" in _problem(tmp_path / "b")
    assert scan_tiles(str(tmp_path / "b"), zero_point=30.0).problems == ()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "T_g.fits").write_bytes(b"not FITS at all" * 400)
    assert "not a FITS file" in _problem(tmp_path / "c")
    write_band(tmp_path / "d" / "whatever.fits", noise((20, 20), 1), wcs=tan_wcs((20, 20)), band=None)
    assert "band" in _problem(tmp_path / "d")
    write_band(tmp_path / "e" / "T_g.fits", noise((20, 20), 1), wcs=tan_wcs((20, 20), scale_arcsec=3600))
    assert "degenerate" in _problem(tmp_path / "e")


def test_a_truncated_tile_is_refused_when_read(tmp_path: Path) -> None:
    write_tile(tmp_path)
    path = tmp_path / "T1_r.fits"
    path.write_bytes(path.read_bytes()[:100_000])
    tile = scan_tiles(str(tmp_path)).tiles[0]
    with pytest.raises(InputError, match=r"T1_r\.fits: HDU 1 cannot be read, truncated or damaged"):
        read_tile(tile, ("z", "r", "g"))


def test_bands_that_differ_in_shape_or_wcs_are_refused_and_both_named(tmp_path: Path) -> None:
    write_tile(tmp_path, bands="gr")
    write_band(tmp_path / "T1_z.fits", noise((300, 321), 1), wcs=tan_wcs((300, 321)), band="z")
    with pytest.raises(InputError, match=r"shape: .*T1_z\.fits .*T1_r\.fits"):
        read_tile(scan_tiles(str(tmp_path)).tiles[0], ("z", "r", "g"))
    (tmp_path / "T1_z.fits").unlink()
    write_band(tmp_path / "T1_z.fits", noise((300, 320), 1), wcs=tan_wcs((300, 320), ra=30.01), band="z")
    with pytest.raises(InputError, match=r"WCS by up to .*T1_z\.fits .*T1_r\.fits"):
        read_tile(scan_tiles(str(tmp_path)).tiles[0], ("z", "r", "g"))


def test_a_missing_band_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    write_tile(tmp_path, bands="gr")
    tile = scan_tiles(str(tmp_path)).tiles[0]
    with pytest.raises(InputError, match="band z missing"):
        read_tile(tile, ("z", "r", "g"))
    (tmp_path / "T1_g.fits").unlink()
    write_tile(tmp_path, bands="g", seed=5)
    with pytest.raises(InputError, match="changed since"):
        read_tile(tile, ("g",))


def test_a_header_that_declares_absurd_pixels_takes_no_memory(tmp_path: Path) -> None:
    write_tile(tmp_path, bands="g")
    path = tmp_path / "T1_g.fits"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"NAXIS1  =                  320", b"NAXIS1  =           1000000000"))
    tile = scan_tiles(str(tmp_path)).tiles[0]
    with pytest.raises(InputError, match="T1_g"):
        read_tile(TileFiles(tile.tile_id, tile.bands), ("g",))


@settings(max_examples=25, deadline=None)
@given(
    ra=st.sampled_from([0.0, 359.999, 30.0, 180.0]),
    dec=st.sampled_from([-30.0, 0.0, 89.99, -89.99]),
    points=st.lists(st.tuples(st.floats(-40, 140), st.floats(-40, 140)), min_size=1, max_size=20),
)
def test_a_position_belongs_to_the_tile_where_it_is_deepest(
    tmp_path_factory: pytest.TempPathFactory, ra: float, dec: float, points: list[tuple[float, float]]
) -> None:
    folder = tmp_path_factory.mktemp("tiles")
    shape = (100, 100)
    wcs = {}
    for name, offset in (("A", 0.0), ("B", 60 * 0.263 / 3600)):  # B overlaps A by 40 rows
        shifted = dec - offset if dec > 80 else dec + offset
        wcs[name] = write_tile(folder, name, shape, "g", ra=ra, dec=shifted)
    x, y = np.array(points).T
    at_ra, at_dec = wcs["A"].all_pix2world(x, y, 0)
    owner, depth = scan_tiles(str(folder)).owners(at_ra % 360, at_dec)
    depths = []
    for name in ("A", "B"):
        px, py = wcs[name].all_world2pix(at_ra, at_dec, 0)
        depths.append(np.minimum.reduce([px + 0.5, 99.5 - px, py + 0.5, 99.5 - py]) * 0.263)
    best = np.max(depths, axis=0)
    clear = (np.abs(depths[0] - depths[1]) > 1e-4) & (np.abs(best) > 1e-4)
    expected = np.where(best > 0, np.argmax(depths, axis=0), -1)
    assert (owner[clear] == expected[clear]).all()
    assert depth[clear & (best > 0)] == pytest.approx(best[clear & (best > 0)], abs=1e-3)
