"""The viewer's protocol: what is asked, which answers are images of the object, how files are named."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.outcomes import InputError, UsageError
from deepshadows.settings import Fetch
from deepshadows.sky.viewer import (
    BlankError,
    Request,
    inspect,
    missing_channel,
    request_of,
    safe_name,
    unobserved_cells,
)
from tests.viewer_server import as_jpeg, cube, flux, picture

REALDATA = Path(os.environ.get("DEEPSHADOWS_REALDATA", Path(__file__).parents[3] / "shared" / "realdata"))
RA, DEC = 30.1, -20.2
ids = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**63), 2**63 - 1)


def request(**flags: Any) -> Request:
    return request_of(Fetch.resolve({"what": "cutouts", "positions": "p", "output": "o", **flags}, "test"))


@given(ids)
def test_a_file_name_stays_in_the_folder(object_id: str | int) -> None:
    name = safe_name(object_id)
    assert PurePosixPath("images", name).parent == PurePosixPath("images")
    assert name not in (".", "..")
    assert not name.startswith((".", "_"))
    assert 0 < len(name) <= 120
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.+-_=~")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), unique=True))
def test_different_identifiers_have_different_names(texts: list[str]) -> None:
    assert len({safe_name(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("object_id", "name"),
    [
        (123, "123"),
        (-5, "-5"),
        ("DES_J0234.1-10", "DES_J0234.1-10"),
        ("../../etc/passwd", "=2E.=2F..=2Fetc=2Fpasswd"),
        ("_a", "=5Fa"),
        ("é", "=C3=A9"),
        ("a=b", "a=3Db"),
        ("", "="),
    ],
)
def test_names_to_check_by_eye(object_id: str | int, name: str) -> None:
    assert safe_name(object_id) == name


@pytest.mark.parametrize("form", ["jpeg", "fits"])
@pytest.mark.parametrize(("survey", "fov"), [("des", 33.5), ("hsc", 21.5)])
def test_the_default_field_is_that_of_the_paper(survey: str, fov: float, form: str) -> None:
    wanted = request(survey=survey, format=form)
    assert wanted.fov_arcsec == pytest.approx(fov, rel=2e-3)
    assert wanted.geometry.fov_arcsec == fov
    assert wanted.unusable() is None


def test_the_query_is_that_of_the_viewer() -> None:
    assert request().parameters(30.1, -2.5) == {
        **{"ra": "30.1", "dec": "-2.5", "layer": "des-dr1", "zoom": "15", "size": "256"}
    }
    wanted = request(survey="hsc", format="fits", pixscale_arcsec=0.168, size_pix=128)
    assert wanted.parameters(0.1, 0.2) == {
        **{"ra": "0.1", "dec": "0.2", "layer": "hsc2", "pixscale": "0.168", "size": "128", "bands": "grz"}
    }
    assert wanted.address.endswith("/viewer/fits-cutout")


def test_a_layer_of_unknown_scale_needs_a_pixel_scale() -> None:
    with pytest.raises(UsageError, match="--pixscale-arcsec"):
        request(layer="new-survey")
    assert request(layer="new-survey", pixscale_arcsec=0.2, size_pix=100).fov_arcsec == pytest.approx(20.0)


@pytest.mark.parametrize(
    "flags",
    [
        {"what": "cutouts", "output": "o"},
        {"what": "cutouts", "output": "o", "positions": "p", "zoom": 15, "pixscale_arcsec": 0.2},
        {"what": "cutouts", "output": "o", "positions": "p", "url": "ftp://server"},
        {"what": "cutouts", "output": "o", "positions": "p", "bands": "g r"},
        {"what": "datasets", "output": "o", "positions": "p"},
        {"what": "datasets", "output": "o", "threads": 2},
        {"what": "datasets", "output": "o", "ra_column": "RAJ2000"},
        {"what": "everything", "output": "o"},
        {"output": "o"},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Fetch.resolve(flags, "test")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"format": "fits", "bands": "gr"}, "band z"),
        ({"format": "fits", "zoom": 15}, "native pixel"),
        ({"layer": "ls-dr9"}, "another stretch"),
        ({"bands": "gri"}, "bands gri"),
        ({"format": "fits", "layer": "ls-dr9"}, None),
    ],
)
def test_images_that_no_network_takes_are_told(flags: dict[str, Any], why: str | None) -> None:
    found = request(**flags).unusable()
    assert (found is None) == (why is None)
    assert (why or "") in (found or "")


def test_good_answers_pass() -> None:
    planes = flux(RA, DEC, 256, 0.131)
    assert inspect(picture(planes, "des-dr1"), "image/jpeg", request(), RA, DEC) == 0
    native = flux(RA, DEC, 128, 0.262)
    assert inspect(cube(native, RA, DEC, 0.262, "grz"), "image/fits", request(format="fits"), RA, DEC) == 0


@pytest.mark.parametrize("level", [0, 32])
def test_a_picture_of_nothing_is_blank(level: int) -> None:
    with pytest.raises(BlankError, match="no data"):
        inspect(as_jpeg(np.full((256, 256, 3), level, np.uint8)), "image/jpeg", request(), RA, DEC)


def test_a_white_picture_is_not_blank() -> None:
    assert not unobserved_cells(np.full((64, 64, 3), 255, np.uint8)).any()


@pytest.mark.parametrize(("band", "channel"), [(0, "B"), (1, "G"), (2, "R")])
def test_a_picture_that_lacks_a_band_is_blank(band: int, channel: str) -> None:
    planes = flux(RA, DEC, 256, 0.131)
    planes[band] = 0
    with pytest.raises(BlankError, match=f"channel {channel}"):
        inspect(picture(planes, "des-dr1"), "image/jpeg", request(), RA, DEC)


def test_the_unobserved_part_of_a_picture_is_found() -> None:
    pixels = np.random.default_rng(7).integers(20, 60, (64, 64, 3)).astype(np.uint8)
    pixels[:16, :, 1] = 32
    cells = unobserved_cells(pixels)
    assert cells[:2].all()
    assert not cells[2:].any()


@pytest.mark.parametrize(("bad", "why"), [("middle", "the object itself"), ("most", "62% of the field")])
def test_an_object_that_was_not_observed_is_blank(bad: str, why: str) -> None:
    planes = flux(RA, DEC, 128, 0.262)
    planes[:, 40:88, 40:88] = 0
    if bad == "most":
        planes = flux(RA, DEC, 128, 0.262)
        planes[1, :80] = np.nan
    with pytest.raises(BlankError, match=why):
        inspect(cube(planes, RA, DEC, 0.262, "grz"), "image/fits", request(format="fits"), RA, DEC)


def test_a_cube_of_another_place_scale_size_or_bands_is_refused() -> None:
    planes, wanted = flux(RA, DEC, 128, 0.262), request(format="fits")
    for body, why in (
        (cube(planes, RA + 0.01, DEC, 0.262, "grz"), "another place"),
        (cube(planes, RA, DEC, 0.4, "grz"), '"/px was asked for'),
        (cube(planes[:, :100, :100], RA, DEC, 0.262, "grz"), r"\(3, 100, 100\)"),
        (cube(planes[:2], RA, DEC, 0.262, "gr"), "bands gr;"),
        (cube(None, RA, DEC, 0.262, "grz"), "does not reach"),
        (cube(planes, RA, DEC, 0.262, "grz")[:100_000], "FITS"),
        (b"SIMPLE", "FITS"),
    ):
        with pytest.raises(InputError, match=why):
            inspect(body, "image/fits", wanted, RA, DEC)


@pytest.mark.parametrize("method", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_damaged_compressed_planes_are_no_image(method: str) -> None:
    """Whatever the decompressor raises."""
    with fits.open(io.BytesIO(cube(flux(RA, DEC, 128, 0.262), RA, DEC, 0.262, "grz"))) as hdus:
        hdu = fits.CompImageHDU(hdus[0].data, hdus[0].header, compression_type=method, quantize_method=1)
    sink = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(sink)
    body, wanted = sink.getvalue(), request(format="fits")
    assert inspect(body, "image/fits", wanted, RA, DEC) == 0
    start = len(body) * 3 // 4
    for damaged in (body[:start], body[:start] + b"\xff" * 2000 + body[start + 2000 :]):
        with pytest.raises(InputError, match="damaged FITS"):
            inspect(damaged, "image/fits", wanted, RA, DEC)


@given(st.binary(max_size=3000))
def test_rubbish_is_never_an_image(body: bytes) -> None:
    for form, kind in (("jpeg", "image/jpeg"), ("fits", "image/fits")):
        with pytest.raises(InputError):
            inspect(body, kind, request(format=form), RA, DEC)


@given(st.integers(0, 30_000))
def test_a_cut_off_answer_is_never_an_image(length: int) -> None:
    whole = picture(flux(RA, DEC, 64, 0.524), "des-dr1")
    with pytest.raises(InputError):
        inspect(whole[: min(length, len(whole) - 20)], "image/jpeg", request(size_pix=64, zoom=13), RA, DEC)


@pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}")
def test_real_cutouts_are_not_blank() -> None:
    images = [image for path in sorted((REALDATA / "cutouts").glob("*.npz")) for image in np.load(path)["image"]]
    assert len(images) == 404
    shares = np.array([unobserved_cells(image).mean() for image in images])
    assert np.count_nonzero(shares) <= 1
    assert shares.max() < 0.5
    assert sum(missing_channel(image) is not None for image in images) <= 2, "two are known to lack a band"
