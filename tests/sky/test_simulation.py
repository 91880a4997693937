"""A simulated tile: the same bits every time, and a sky that holds what its truth table says."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from deepshadows import storage
from deepshadows.outcomes import UsageError
from deepshadows.sky import population, simulation, surveys
from deepshadows.sky.canvas import Canvas
from deepshadows.sky.conditions import Conditions
from deepshadows.sky.population import Kind, SkyObject, make_object
from deepshadows.sky.simulation import fits_bytes, render, simulate_tile, tile_wcs_header
from deepshadows.sky.surveys import BANDS, DES, HSC
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile

QUIET = replace(DES, sky_sigma_nmgy=dict.fromkeys(BANDS, 1e-9))
"""DES without noise."""


def source(kind: Kind, *, mag: float = 20.0, r_eff_arcsec: float = 3.0) -> SkyObject:
    mags = (mag + 0.3, mag, mag - 0.1, mag - 0.2)
    return SkyObject(
        kind=kind,
        x=256.3,
        y=255.6,
        mag=mags,
        r_eff_arcsec=r_eff_arcsec,
        sersic_n=1.0,
        ellipticity=0.3,
        angle_deg=30,
        seed=7,
    )


def as_stated(survey: surveys.Survey, grain: float = 0.0) -> Conditions:
    """The survey's own seeing and depth, without scatter."""
    return Conditions(
        fwhm_pix=survey.fwhm_pix(), sigma_counts=survey.sky_sigma_counts(), grain=grain, level_counts=np.zeros(4)
    )


def total_mag(flux_HW: np.ndarray) -> float:
    return float(30 - 2.5 * np.log10(flux_HW.sum(dtype=np.float64)))


def test_a_tile_depends_on_seed_and_number_alone() -> None:
    first = [simulate_tile(DES, number, 5, 512) for number in (0, 3)]
    again = [simulate_tile(DES, number, 5, 512) for number in (3, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        assert a.truth().equals(b.truth())
        assert all(fits_bytes(a, band) == fits_bytes(b, band) for band in BANDS)
    assert not np.array_equal(first[0].flux, first[1].flux)
    assert not np.array_equal(first[0].flux, simulate_tile(DES, 0, 6, 512).flux)


@pytest.mark.parametrize(
    ("kind", "r_eff_arcsec", "tolerance_mag"),
    [(Kind.STAR, 0.0, 0.02), (Kind.GALAXY, 1.5, 0.04), (Kind.LSBG, 3.5, 0.04), (Kind.IRREGULAR, 3.0, 0.04)],
)
def test_total_magnitudes_are_those_of_the_truth(kind: Kind, r_eff_arcsec: float, tolerance_mag: float) -> None:
    item = source(kind, r_eff_arcsec=r_eff_arcsec)
    flux, _, _ = render(QUIET, as_stated(QUIET), [item], np.random.default_rng(1), 512)
    # knots and clumps are bluer than their galaxy, so single bands may differ a little; r is their reference
    assert total_mag(flux[1]) == pytest.approx(item.mag[1], abs=tolerance_mag)
    for band in range(4):
        assert total_mag(flux[band]) == pytest.approx(item.mag[band], abs=tolerance_mag + 0.06)


def test_a_faint_galaxy_drawn_as_a_moffat_keeps_magnitude_and_size() -> None:
    radii = []
    for mag in (22.0, 21.0):  # either side of COMPACT_MAG_R
        item = source(Kind.GALAXY, mag=mag, r_eff_arcsec=0.7)
        flux, _, _ = render(QUIET, as_stated(QUIET), [item], np.random.default_rng(1), 128 * 4)
        assert total_mag(flux[1]) == pytest.approx(item.mag[1], abs=0.05)
        rows, columns = np.indices(flux.shape[1:])
        radius = np.hypot(columns - item.x, rows - item.y)
        order = np.argsort(radius, axis=None)
        light = np.cumsum(flux[1].ravel()[order], dtype=np.float64)
        radii.append(radius.ravel()[order][np.searchsorted(light, light[-1] / 2)])
    assert radii[0] == pytest.approx(radii[1], rel=0.1)


@pytest.mark.parametrize("survey", [DES, HSC], ids=["des", "hsc"])
def test_blank_sky_has_the_stated_noise(survey: surveys.Survey) -> None:
    conditions = as_stated(survey, grain=0.1)
    flux, saturated, _ = render(survey, conditions, [], np.random.default_rng(2), 512)
    sigma = survey.sky_sigma_counts()
    one_axis = 0.8**2 + 2 * 0.1**2  # of the kernel .1 .8 .1
    assert flux.std(axis=(1, 2)) == pytest.approx(sigma * one_axis, rel=0.03)
    coarse = flux.reshape(4, 32, 16, 32, 16).mean(axis=(2, 4))  # correlation does not change what 16 pixels add up to
    assert coarse.std(axis=(1, 2)) == pytest.approx(sigma / 16, rel=0.08)
    neighbours = (flux[:, :, 1:] * flux[:, :, :-1]).mean(axis=(1, 2)) / flux.var(axis=(1, 2))
    assert neighbours == pytest.approx(np.full(4, 2 * 0.8 * 0.1 / one_axis), abs=0.03)
    assert abs(flux.mean(axis=(1, 2)) / sigma).max() < 0.05
    assert not saturated.any()


def test_files_carry_wcs_zero_point_and_truth_positions(tmp_path: Path) -> None:
    tile = simulate_tile(DES, 2, 1, 512)
    for band in BANDS:
        storage.write(str(tmp_path / f"{tile.tile_id}_{band}.fits.fz"), fits_bytes(tile, band))
    index = scan_tiles(str(tmp_path))
    assert not index.problems
    assert [files.tile_id for files in index.tiles] == ["DSIM0002"]
    read = read_tile(index.tiles[0], BANDS)
    assert read.pixel_scale_arcsec == pytest.approx(0.263, rel=1e-4)
    assert np.array_equal(read.saturated, tile.saturated)
    step_nmgy = tile.conditions.sigma_counts / 1000 / 8
    assert (abs(read.flux - tile.flux / 1000).max(axis=(1, 2)) < step_nmgy).all()

    truth = tile.truth().to_pylist()
    stars = [row for row in truth if row["kind"] == "star" and 17.0 < row["mag_r"] < 21.0]
    assert stars
    for star in stars:
        x, y = read.wcs.all_world2pix(star["ra"], star["dec"], 0)
        peak_y, peak_x = round(float(y)), round(float(x))
        if not (8 < peak_x < 504 and 8 < peak_y < 504):
            continue
        stamp = read.flux[1, peak_y - 3 : peak_y + 4, peak_x - 3 : peak_x + 4]
        rows, columns = np.indices(stamp.shape) - 3
        offset_pix = np.hypot((columns * stamp).sum(), (rows * stamp).sum()) / stamp.sum()
        assert offset_pix * 0.263 < 0.35  # half a pixel of sampling, and faint neighbours


def test_headers_state_what_a_reader_needs_and_no_time() -> None:
    tile = simulate_tile(DES, 0, 1, 512)
    with fits.open(io.BytesIO(fits_bytes(tile, "g"))) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["SCI", "WGT", "MSK"]
        header = hdus["SCI"].header
        stated = [header[key] for key in ("MAGZERO", "BAND", "TILENAME", "BUNIT")]
        assert stated == [30.0, "g", "DSIM0000", "counts"]
        assert header["SATURATE"] == pytest.approx(tile.wells[0])
        assert "_" not in header["TILENAME"]
        assert np.ptp(hdus["WGT"].data) == 0
        assert hdus["WGT"].data[0, 0] == pytest.approx(tile.conditions.sigma_counts[0] ** -2, rel=1e-3)
        assert not {"DATE", "CHECKSUM", "DATASUM"} & {key for hdu in hdus for key in hdu.header}


def test_a_bright_star_saturates_in_pixels_and_mask() -> None:
    star = source(Kind.STAR_HALO, mag=12.0, r_eff_arcsec=0.0)
    flux, saturated, wells = render(DES, as_stated(DES), [star], np.random.default_rng(1), 512)
    assert saturated[:, 250:262, 250:262].any(axis=(1, 2)).all()
    assert saturated.mean() < 0.05
    assert (flux <= wells[:, None, None] * (1 + 1e-6)).all()
    far = flux[:, 256, 330:350].mean(axis=1)  # 20" away: halo, well above blank sky
    assert (far > 0.5 * DES.sky_sigma_counts()).all()


def test_every_artifact_kind_appears_and_is_drawn() -> None:
    rng = np.random.default_rng(3)
    drawn = {item.kind for _ in range(8) for item in population.draw_population(rng, DES, 2048)}
    assert drawn == set(Kind)
    artifacts = set(Kind) - {Kind.LSBG, Kind.DWARF, Kind.STAR, Kind.GALAXY}
    assert len(artifacts) >= 6
    for kind in artifacts:
        canvas = Canvas.blank(DES, 512)
        simulation._DRAW[kind](canvas, make_object(rng, kind, 250.0, 260.0))
        assert np.isfinite(canvas.flux).all()
        assert canvas.flux.sum() > 0, kind


@pytest.mark.parametrize("place", [(-0.4, 0.2), (511.4, 300.0), (3.0, 511.4)])
@pytest.mark.parametrize("kind", list(Kind))
def test_objects_at_the_edge_are_drawn_as_far_as_they_reach(kind: Kind, place: tuple[float, float]) -> None:
    item = make_object(np.random.default_rng(4), kind, *place)
    flux, _, _ = render(QUIET, as_stated(QUIET), [item], np.random.default_rng(1), 512)
    assert np.isfinite(flux).all()


def test_lsbgs_follow_the_published_distributions() -> None:
    """Of size and colour; surface brightness is 0.2 mag fainter, as real cut-outs are."""
    rng = np.random.default_rng(5)
    lsbgs = [make_object(rng, Kind.LSBG, 0.0, 0.0) for _ in range(4000)]
    r_eff = np.array([item.r_eff_arcsec for item in lsbgs])
    assert np.percentile(r_eff, [50, 80, 90]) == pytest.approx([3.8, 5.0, 6.0], rel=0.04)
    assert r_eff.max() > 16
    g_i = np.array([item.mag[0] - item.mag[2] for item in lsbgs])
    mu = np.array([item.mu_eff_g for item in lsbgs])
    red = g_i > 0.6
    assert red.mean() == pytest.approx(1 / 3, abs=0.04)
    assert np.median(mu[~red]) == pytest.approx(24.65 + 0.2, abs=0.1)
    assert np.median(mu[red]) == pytest.approx(24.9 + 0.2, abs=0.1)
    assert max(item.ellipticity for item in lsbgs) < 0.7
    assert np.median([item.sersic_n for item in lsbgs]) == pytest.approx(1.05, abs=0.1)


def test_dwarfs_are_lsbgs_larger_and_fainter_than_most() -> None:
    rng = np.random.default_rng(6)
    lsbgs, dwarfs = ([make_object(rng, kind, 0.0, 0.0) for _ in range(500)] for kind in (Kind.LSBG, Kind.DWARF))
    assert {item.label for item in [*lsbgs, *dwarfs]} == {1}
    assert np.median([item.mu_eff_g for item in dwarfs]) > np.percentile([item.mu_eff_g for item in lsbgs], 85)
    assert np.median([item.r_eff_arcsec for item in dwarfs]) > np.percentile([item.r_eff_arcsec for item in lsbgs], 75)


def test_bright_objects_have_companions_and_few_lsbgs_beside_them() -> None:
    rng = np.random.default_rng(7)
    tiles = [population.draw_population(rng, DES, 2048) for _ in range(10)]
    beside: dict[Kind, float] = {}  # in the ring around a bright object, over what an even spread would give
    for kind in (Kind.GALAXY, Kind.LSBG):
        inside = total = expected = 0.0
        for objects in tiles:
            bright = np.array([(item.x, item.y) for item in objects if item.kind in population.COMPANIONS])
            places = np.array([(item.x, item.y) for item in objects if item.kind is kind])
            near = 16 / DES.pixel_scale_arcsec
            inside += (np.hypot(*(places[:, None] - bright).transpose(2, 0, 1)) < near).sum()
            total += len(places)
            expected += len(places) * len(bright) * np.pi * near**2 / 2048**2
        beside[kind] = inside / expected
    assert beside[Kind.GALAXY] > 1.2
    assert beside[Kind.LSBG] < 0.5


def test_tiles_lie_side_by_side() -> None:
    centres = [(h["CRVAL1"], h["CRVAL2"]) for h in (tile_wcs_header(DES, number, 512) for number in (0, 1, 32))]
    step = 512 * 0.263 / 3600
    assert centres[0] == (30.0, -30.0)
    assert (centres[1][0] - 30.0) * np.cos(np.deg2rad(30)) == pytest.approx(step)
    assert centres[2] == (30.0, pytest.approx(-30.0 + step))


def test_an_unknown_survey_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one of des, hsc"):
        surveys.by_name("lsst")
