"""Detection on small tiles whose sources are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from astropy.wcs import WCS

from deepshadows.outcomes import InputError
from deepshadows.sky import extraction
from deepshadows.sky.conditions import Conditions
from deepshadows.sky.extraction import DETECTION_SCHEMA, detect, detection_ids
from deepshadows.sky.population import Kind, SkyObject
from deepshadows.sky.simulation import render, tile_wcs_header
from deepshadows.sky.spread import templates
from deepshadows.sky.surveys import BANDS, DES
from deepshadows.sky.tiles import Tile


def tile_with(objects: list[SkyObject], size_pix: int = 512) -> Tile:
    conditions = Conditions(
        fwhm_pix=DES.fwhm_pix(), sigma_counts=DES.sky_sigma_counts(), grain=0.0, level_counts=np.zeros(4)
    )
    flux, saturated, _ = render(DES, conditions, objects, np.random.default_rng(11), size_pix)
    return Tile(
        tile_id="T",
        bands=BANDS,
        flux=flux / np.float32(1000),
        valid=np.ones(flux.shape, dtype=bool),
        saturated=saturated,
        wcs=WCS(tile_wcs_header(DES, 0, size_pix)),
        pixel_scale_arcsec=DES.pixel_scale_arcsec,
    )


def galaxy(x: float, y: float, *, mu: float = 24.6, r_eff: float = 3.5) -> SkyObject:
    g = mu - 2.5 * float(np.log10(2 * np.pi * r_eff**2))
    return SkyObject(
        kind=Kind.GALAXY,
        x=x,
        y=y,
        mag=(g, g - 0.35, g - 0.5, g - 0.6),
        r_eff_arcsec=r_eff,
        sersic_n=1.0,
        ellipticity=0.3,
        angle_deg=20.0,
        seed=1,
    )


def star(x: float, y: float, mag: float = 19.0) -> SkyObject:
    return SkyObject(
        kind=Kind.STAR,
        x=x,
        y=y,
        mag=(mag + 0.5, mag, mag - 0.2, mag - 0.3),
        r_eff_arcsec=0.0,
        sersic_n=float("nan"),
        ellipticity=0.0,
        angle_deg=0.0,
        seed=1,
    )


GALAXIES = [galaxy(110.3, 120.6), galaxy(380.2, 130.4, mu=25.2, r_eff=4.5), galaxy(256.7, 260.1, mu=24.3, r_eff=2.8)]
STARS = [star(60.2 + 90 * k, 420.7 + 11.3 * k, 18.5 + 0.5 * k) for k in range(5)]


def nearest(table: pa.Table, item: SkyObject) -> dict[str, float]:
    distance = np.hypot(np.array(table["x_image"]) - item.x, np.array(table["y_image"]) - item.y)
    row = table.slice(int(np.argmin(distance)), 1).to_pylist()[0]
    return {**row, "distance_pix": float(distance.min())}


@pytest.fixture(scope="module")
def tile() -> Tile:
    return tile_with(GALAXIES + STARS)


@pytest.fixture(scope="module")
def table(tile: Tile) -> pa.Table:
    return detect(tile)


def test_isolated_galaxies_come_back_with_magnitude_size_and_brightness(table: pa.Table) -> None:
    assert table.schema == DETECTION_SCHEMA
    for item in GALAXIES:
        row = nearest(table, item)
        assert row["distance_pix"] < 1.0
        for band, mag in zip(BANDS, item.mag, strict=True):
            assert row[f"mag_auto_{band}"] == pytest.approx(mag + 0.1, abs=0.25)
        assert row["flux_radius_g"] * 0.263 == pytest.approx(item.r_eff_arcsec, rel=0.15)
        assert row["mu_mean_model_g"] == pytest.approx(item.mu_eff_g, abs=0.2)
        # an exponential disc: 1.12 brighter in the centre (less by the seeing), 0.70 fainter at the half-light radius
        assert item.mu_eff_g - 1.3 < row["mu_max_model_g"] < item.mu_eff_g - 0.4
        assert row["mu_eff_model_g"] == pytest.approx(item.mu_eff_g + 0.70, abs=0.4)
        assert 1 - row["b_image"] / row["a_image"] == pytest.approx(0.3, abs=0.1)
        assert row["theta_image"] == pytest.approx(20, abs=10)


def test_positions_on_the_sky(tile: Tile, table: pa.Table) -> None:
    ra, dec = tile.wcs.all_pix2world(np.array(table["x_image"]), np.array(table["y_image"]), 0)
    assert np.array(table["ra"]) == pytest.approx(ra, abs=1e-7)
    assert np.array(table["dec"]) == pytest.approx(dec, abs=1e-7)


def test_spread_model_tells_stars_from_galaxies(table: pa.Table) -> None:
    for item in STARS:
        assert abs(nearest(table, item)["spread_model_i"]) < 0.003
    for item in GALAXIES:
        row = nearest(table, item)
        assert row["spread_model_i"] > 0.01
        assert 0 < row["spreaderr_model_i"] < 0.01


def test_spread_templates_are_normalised_and_g_is_wider() -> None:
    shapes = templates(3.4)
    assert shapes.phi.sum((-2, -1)) == pytest.approx(np.ones((8, 8)), abs=0.05)
    assert shapes.g.sum((-2, -1)) == pytest.approx(shapes.phi.sum((-2, -1)), abs=2e-3)
    assert (shapes.g.max((-2, -1)) < shapes.phi.max((-2, -1))).all()


def test_without_stars_the_seeing_must_be_given() -> None:
    alone = tile_with([galaxy(256.0, 256.0)])
    assert np.isnan(nearest(detect(alone), galaxy(256.0, 256.0))["spread_model_i"])
    assert nearest(detect(alone, seeing_arcsec=0.88), galaxy(256.0, 256.0))["spread_model_i"] > 0.01


def test_detection_repeats_and_ids_are_unique(tile: Tile, table: pa.Table) -> None:
    assert detect(tile).equals(table)
    other = detect(replace(tile, tile_id="U"))
    ids = np.concatenate([np.array(table["object_id"]), np.array(other["object_id"])])
    assert len(np.unique(ids)) == len(ids)
    assert (ids > 0).all()
    assert list(detection_ids("T", 3) & 0xFFFFFFFF) == [1, 2, 3]


def test_a_missing_band_gives_nan_features(tile: Tile, table: pa.Table) -> None:
    grz = [0, 1, 3]
    bands = {"flux": tile.flux[grz], "valid": tile.valid[grz], "saturated": tile.saturated[grz]}
    without_i = replace(tile, bands=("g", "r", "z"), **bands)
    found = detect(without_i)
    for name in ("mag_auto_i", "flux_radius_i", "mu_max_model_i", "spread_model_i"):
        assert np.isnan(np.array(found[name])).all()
    row = nearest(found, GALAXIES[0])
    assert row["mag_auto_g"] == pytest.approx(nearest(table, GALAXIES[0])["mag_auto_g"], abs=0.2)


def test_only_z_is_an_error(tile: Tile) -> None:
    only_z = replace(tile, bands=("z",), flux=tile.flux[3:], valid=tile.valid[3:], saturated=tile.saturated[3:])
    with pytest.raises(InputError, match="no valid pixel in g, r or i"):
        detect(only_z)


def test_a_band_of_one_value_is_an_error(tile: Tile) -> None:
    flux = tile.flux.copy()
    flux[2] = 1.0
    with pytest.raises(InputError, match="band i has no noise"):
        detect(replace(tile, flux=flux))


def test_masked_pixels_are_neither_detected_nor_measured(tile: Tile, table: pa.Table) -> None:
    valid = tile.valid.copy()
    valid[:, 90:160, 80:140] = False
    masked = detect(replace(tile, valid=valid, flux=np.where(valid, tile.flux, 0)))
    assert nearest(masked, GALAXIES[0])["distance_pix"] > 30
    row = nearest(masked, GALAXIES[2])
    assert row["mag_auto_r"] == pytest.approx(nearest(table, GALAXIES[2])["mag_auto_r"], abs=0.1)


def test_a_band_masked_everywhere_counts_as_missing(tile: Tile) -> None:
    valid = tile.valid.copy()
    valid[1] = False
    found = detect(replace(tile, valid=valid, flux=np.where(valid, tile.flux, 0)))
    assert np.isnan(np.array(found["mag_auto_r"])).all()
    assert np.isfinite(nearest(found, GALAXIES[0])["mag_auto_g"])


def test_saturated_and_truncated_sources_are_flagged() -> None:
    bright = replace(star(256.0, 256.0, 12.0), kind=Kind.STAR_HALO)
    found = detect(tile_with([bright, galaxy(1.0, 100.0, mu=24.0)]))
    assert nearest(found, bright)["flags"] & extraction.SATURATED
    assert nearest(found, galaxy(1.0, 100.0))["flags"] & (extraction.TRUNCATED | extraction.INCOMPLETE)


def test_blank_sky_gives_an_empty_table() -> None:
    found = detect(tile_with([]), threshold_sigma=4.0)
    assert found.num_rows == 0
    assert found.schema == DETECTION_SCHEMA


def test_a_field_too_crowded_for_sep_says_what_to_do(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SUB_OBJECTS", 2)
    with pytest.raises(InputError, match=r"too crowded .* raise --threshold-sigma"):
        detect(tile, threshold_sigma=0.5)
