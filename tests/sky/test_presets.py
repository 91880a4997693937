"""Presets of surveys: the names, filters and zero points of their files; on real tiles where these are at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from deepshadows.outcomes import InputError, UsageError
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.presets import PRESETS, preset_named
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile
from tests.sky.tile_files import noise, tan_wcs

REALDATA = Path(os.environ.get("DEEPSHADOWS_REALDATA", Path(__file__).parents[3] / "shared" / "realdata")) / "tiles"
real = pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}")

NAMES: dict[str, tuple[str, str]] = {
    "des": ("DES0151+0001_r2624p01_{}.fits", "DES0151+0001"),
    "legacy": ("legacysurvey-1498p017-image-{}.fits", "1498p017"),
    "hsc": ("calexp-HSC-{}-9813-4,4.fits", "9813-4,4"),
    "kids": ("KiDS_DR4.0_215.1_-0.5_{}_sci.fits", "KiDS_DR4.0_215.1_-0.5"),
    "panstarrs": ("rings.v3.skycell.1405.053.stk.{}.unconv.fits", "rings.v3.skycell.1405.053"),
    "sdss": ("frame-{}-002728-3-0123.fits", "002728-3-0123"),
    "rubin": ("deep_coadd_5063_14_{}_lsst_cells_v1.fits", "5063_14"),
}
ZERO_POINTS: dict[str, tuple[dict[str, Any], float]] = {
    "des": ({}, 30.0),
    "legacy": ({}, 22.5),
    "hsc": ({"FLUXMAG0": 63095734448.0194}, 27.0),
    "kids": ({}, 0.0),
    "panstarrs": ({"EXPTIME": 100.0}, 30.0),
    "sdss": ({"BUNIT": "nanomaggy"}, 22.5),
    "rubin": ({"BUNIT": "nJy"}, 31.4),
}


def write_survey(folder: Path, survey: str, scale_arcsec: float | None = None) -> None:
    """A small tile named as the survey names its own, g, r, i of the same flux, and a weight map beside it."""
    name, _ = NAMES[survey]
    keys, zero_point = ZERO_POINTS[survey]
    header = tan_wcs((150, 160), scale_arcsec=scale_arcsec or PRESETS[survey].pixel_scale_arcsec).to_header()
    header.update(keys)
    counts = noise((150, 160), 1, sigma=1.0) * 0.003 * 10 ** (0.4 * (zero_point - 22.5))
    for band in "gri":
        path = folder / name.format(band.upper() if survey == "hsc" else band)
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(counts, header, name="IMAGE")]).writeto(path)


@pytest.mark.parametrize("survey", PRESETS)
def test_files_named_as_a_survey_does_become_its_tiles_in_nanomaggies(tmp_path: Path, survey: str) -> None:
    write_survey(tmp_path, survey)
    beside = {"legacy": "legacysurvey-1498p017-invvar-g.fits", "kids": "KiDS_DR4.0_215.1_-0.5_g_wei.fits"}
    beside["panstarrs"] = "rings.v3.skycell.1405.053.stk.g.unconv.mask.fits"
    if survey in beside:
        fits.PrimaryHDU(np.ones((150, 160), np.float32)).writeto(tmp_path / beside[survey])
    index = scan_tiles(str(tmp_path), survey=survey)
    assert index.problems == ()
    (tile,) = index.tiles
    assert tile.tile_id == NAMES[survey][1]
    assert sorted(tile.bands) == ["g", "i", "r"]
    pixels = read_tile(tile, ("i", "r", "g"))
    assert pixels.flux[0] == pytest.approx(noise((150, 160), 1, sigma=1.0) * 0.003, rel=1e-4)
    stack = cut(pixels, np.array([30.0]), np.array([-30.0]), Geometry(stretch=DES, bands=("i", "r", "g")))
    assert stack.images.std() > 1


@pytest.mark.parametrize("survey", PRESETS)
def test_another_scale_than_the_survey_s_is_refused(tmp_path: Path, survey: str) -> None:
    write_survey(tmp_path, survey, scale_arcsec=PRESETS[survey].pixel_scale_arcsec * 1.05)
    index = scan_tiles(str(tmp_path), survey=survey)
    assert index.tiles == ()
    assert all(f"--survey {survey}" in reason for _, reason in index.problems)


def test_what_the_header_states_wins_and_what_the_user_says_comes_next(tmp_path: Path) -> None:
    write_survey(tmp_path, "kids")
    assert scan_tiles(str(tmp_path), 25.0, "kids").tiles[0].bands["g"].zero_point == 25.0
    for path in tmp_path.iterdir():
        fits.setval(path, "MAGZERO", value=24.0, ext=1)
    assert scan_tiles(str(tmp_path), 25.0, "kids").tiles[0].bands["g"].zero_point == 24.0


def test_an_unknown_survey_is_told() -> None:
    with pytest.raises(UsageError, match="--survey 2mass"):
        preset_named("2mass")


@real
@pytest.mark.parametrize(
    ("survey", "folder", "bands", "zero_point"),
    [
        ("des", "des_dr1", "grz", 30.0),
        ("legacy", "legacy_dr9_59.1067_-30.4848", "grz", 22.5),
        ("hsc", "hsc", "grz", 27.0),
        ("panstarrs", "panstarrs_same_field", "gri", 25 + 2.5 * np.log10(860)),
    ],
)
def test_real_tiles_of_each_survey_are_cut(
    tmp_path: Path, survey: str, folder: str, bands: str, zero_point: float
) -> None:
    wanted = {"hsc": "hsc_lsbg_*.fits", "legacy": "cutout_*.fits"}.get(survey, "*.fits")
    for path in (REALDATA / folder).glob(wanted):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = scan_tiles(str(tmp_path), survey=survey)
    assert index.problems == ()
    (tile,) = index.tiles
    assert tile.bands["g"].zero_point == pytest.approx(zero_point, abs=1e-3)
    geometry = Geometry(stretch=DES, bands=tuple(sorted(bands, key="zirg".index)))
    pixels = read_tile(tile, geometry.bands)
    ra, dec = pixels.wcs.all_pix2world([pixels.shape[1] / 2], [pixels.shape[0] / 2], 0)
    image = cut(pixels, ra, dec, geometry).images[0]
    assert 20 < np.median(image) < 160, "sky and a galaxy, neither black nor white"
    assert image.std() > 3


@real
def test_real_sdss_frames_are_nanomaggies_and_lie_on_a_grid_of_their_own_each(tmp_path: Path) -> None:
    for path in (REALDATA / "sdss_same_field").glob("*.fits"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = scan_tiles(str(tmp_path), survey="sdss")
    assert index.problems == ()
    (tile,) = index.tiles
    for band in "grz":
        pixels = read_tile(tile, (band,))
        assert 0.005 < np.median(np.abs(pixels.flux)) < 0.3, "noise of SDSS in nanomaggies"
    with pytest.raises(InputError, match=r"differ in WCS by up to 7.* px: .*SDSS_z.fits \(z\) and .*SDSS_r.fits \(r\)"):
        read_tile(tile, ("z", "r", "g"))


@real
def test_kids_tiles_take_a_wcs_and_the_survey_s_zero_point(tmp_path: Path) -> None:
    for band in "gri":
        with fits.open(REALDATA / "kids_viking_2600px_no_wcs" / f"{band}.fits") as hdus:
            data = hdus[1].data[:400, :400]
        header = tan_wcs(data.shape, scale_arcsec=0.2).to_header()
        fits.PrimaryHDU(data, header).writeto(tmp_path / f"KiDS_DR4.0_215.1_0.5_{band}_sci.fits")
    (tile,) = scan_tiles(str(tmp_path), survey="kids").tiles
    geometry = Geometry(stretch=DES, bands=("i", "r", "g"))
    image = cut(read_tile(tile, geometry.bands), np.array([30.0]), np.array([-30.0]), geometry).images[0]
    assert 20 < np.median(image) < 160
