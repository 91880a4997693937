"""Rows of FITS images in every layout: the same pixels as the whole image has, and little else is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.schema import Flag
from deepshadows.sky import rice
from deepshadows.sky.cutouts import Geometry, cut, cut_parts
from deepshadows.sky.fits_files import FitsFile, fits_errors
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import open_tile, read_tile
from tests.sky.tile_files import noise, tan_wcs, write_tile

SHAPE = (90, 70)
FLOATS = noise(SHAPE, 3)
INTEGERS = np.random.default_rng(4).integers(0, 2**15, SHAPE)

HOLES = np.where(INTEGERS % 50 == 0, np.float32(np.nan), FLOATS)


def compressed(data: np.ndarray, kind: str, **options: Any) -> fits.CompImageHDU:
    return fits.CompImageHDU(data, compression_type=kind, **options)


LAYOUTS: dict[str, Any] = {
    "float32": lambda: fits.ImageHDU(FLOATS),
    "float64": lambda: fits.ImageHDU(FLOATS.astype(np.float64)),
    "uint8": lambda: fits.ImageHDU(INTEGERS.astype(np.uint8)),
    "int16": lambda: fits.ImageHDU(INTEGERS.astype(np.int16)),
    "uint16": lambda: fits.ImageHDU(INTEGERS.astype(np.uint16)),
    "cube": lambda: fits.ImageHDU(np.stack([FLOATS + 1, FLOATS])),
    "rice": lambda: compressed(FLOATS, "RICE_1", quantize_level=4, quantize_method=1, dither_seed=9950),
    "rice, exact zeros": lambda: compressed(FLOATS, "RICE_1", quantize_level=4, quantize_method=2, dither_seed=10000),
    "rice, no dither": lambda: compressed(FLOATS, "RICE_1", quantize_level=4, quantize_method=-1),
    "rice, NaN": lambda: compressed(HOLES, "RICE_1", quantize_level=4, quantize_method=1, dither_seed=77),
    "rice of integers": lambda: compressed(INTEGERS.astype(np.int32), "RICE_1"),
    "rice of short integers": lambda: compressed((INTEGERS - 2**14).astype(np.int16), "RICE_1"),
    "rice of a mask": lambda: compressed((INTEGERS > 2**14).astype(np.int32), "RICE_1"),
    "rice of white noise": lambda: compressed((INTEGERS**4).astype(np.int32), "RICE_1"),
    "rice, 7 rows a tile": lambda: compressed(
        FLOATS, "RICE_1", quantize_level=4, quantize_method=1, dither_seed=1, tile_shape=(7, 70)
    ),
    "rice, square tiles": lambda: compressed(FLOATS, "RICE_1", quantize_level=4, tile_shape=(10, 10)),
    "gzip, lossless": lambda: compressed(FLOATS, "GZIP_2", quantize_level=0),
    "hcompress": lambda: compressed(FLOATS, "HCOMPRESS_1", quantize_level=4, tile_shape=(16, 70)),
    "compressed cube": lambda: compressed(np.stack([FLOATS + 1, FLOATS]), "GZIP_2", quantize_level=0),
}


@pytest.mark.parametrize(
    ("layout", "zipped"), [*((layout, False) for layout in LAYOUTS), ("float32", True), ("cube", True), ("rice", True)]
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(1, SHAPE[0])))
def test_some_rows_are_those_of_the_whole_image(
    tmp_path: Path, layout: str, zipped: bool, rows: tuple[int, int]
) -> None:
    path = tmp_path / f"a.fits{'.gz' if zipped else ''}"
    if not path.exists():
        fits.HDUList([fits.PrimaryHDU(), LAYOUTS[layout](), fits.ImageHDU(FLOATS + 2)]).writeto(path)
    first, last = rows[0], min(rows[0] + rows[1], SHAPE[0])
    expected = fits.getdata(path, 1)
    plane = 1 if expected.ndim == 3 else None
    expected = expected if plane is None else expected[plane]
    image, missing, other = FitsFile(str(path), path.stat().st_size).images([1, None, 2], SHAPE, plane)
    assert image is not None
    assert other is not None
    assert missing is None
    found = image.rows(first, last)
    assert found.dtype.kind == expected.dtype.kind
    assert np.array_equal(found, expected[first:last], equal_nan=found.dtype.kind == "f")
    assert np.array_equal(other.rows(first, last), (FLOATS + 2)[first:last])


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.startswith("rice")])
def test_without_a_compiler_astropy_decodes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), LAYOUTS[layout]()]).writeto(path)
    found = []
    for library in (rice._library(), None):
        monkeypatch.setattr(rice, "_library", lambda library=library: library)
        (image,) = FitsFile(str(path), path.stat().st_size).images([1], SHAPE, None)
        assert image is not None
        assert image.slow_start is (library is None) or "square" in layout
        found.append(image.rows(13, 81))
    assert np.array_equal(*found, equal_nan=found[0].dtype.kind == "f")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=30), cut=st.floats(0.3, 1))
def test_damaged_rice_is_pixels_or_an_error(tmp_path: Path, flips: list[tuple[float, int]], cut: float) -> None:
    path = tmp_path / "a.fits"
    if not path.exists():
        fits.HDUList([fits.PrimaryHDU(), LAYOUTS["rice"]()]).writeto(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        table = hdus[1].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    for where, value in flips:
        data[int(table + where * (len(data) - table - 1))] = value
    (tmp_path / "b.fits").write_bytes(data)
    try:
        with fits_errors("b.fits"):
            (image,) = FitsFile(str(tmp_path / "b.fits"), int(cut * len(data))).images([1], SHAPE, None)
            assert image is not None
            assert image.rows(0, SHAPE[0]).shape == SHAPE
    except InputError as error:
        assert "b.fits" in str(error)


@pytest.mark.parametrize(("size", "offset"), [(2**63 - 1, 10), (40, 2**63 - 1), (-1, 0), (41, 0)])
def test_descriptors_that_point_outside_are_an_error(size: int, offset: int) -> None:
    """Those of 64 bits may be so large that their sum is negative."""
    kind = [("COMPRESSED_DATA", ">i8", (2,)), ("ZSCALE", ">f8"), ("ZZERO", ">f8")]
    table = np.array([((size, offset), 1.0, 0.0)], kind)
    how = rice.Rice(bytes_a_pixel=4, block=32, dither=1, seed=1, quantised=True, blank=None)
    with pytest.raises(InputError, match=r"b\.fits.*points outside"):
        how.decode(table, np.zeros(40 + rice.SLACK_BYTES, np.uint8), 0, 70, (1, 70), "b.fits")


def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the ranges that are read from now on."""
    sizes: list[int] = []
    read = storage.read_range

    def counted(url: str, start: int, end: int) -> memoryview:
        sizes.append(end - start)
        return read(url, start, end)

    monkeypatch.setattr(storage, "read_range", counted)
    return sizes


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
def test_one_detection_reads_the_rows_around_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    wcs = write_tile(tmp_path / "made", shape=(1400, 200), suffix=suffix)
    for path in (tmp_path / "made").iterdir():
        storage.write(storage.join(place, path.name), path.read_bytes())
    (files,) = scan_tiles(place).tiles
    ra, dec = wcs.all_pix2world([100], [700], 0)
    sizes = read_bytes(monkeypatch)
    stack = cut(open_tile(files, ("z", "r", "g")), ra, dec, Geometry(stretch=DES))
    assert stack.flags.tolist() == [0]
    assert sum(sizes) < 0.15 * sum(band.size_bytes for band in files.bands.values())
    assert (stack.images == cut(read_tile(files, ("z", "r", "g")), ra, dec, Geometry(stretch=DES)).images).all()


@pytest.mark.parametrize("scale", [0.263, 0.2])
@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
def test_dense_sparse_whole_and_threads_give_identical_pixels_from_files(
    tmp_path: Path, suffix: str, scale: float
) -> None:
    shape = (411, 335)
    science = noise(shape, 7)
    science[200:230, 100:103] = np.nan
    mask, weight = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    mask[50:60, 50], mask[300, 300], weight[10:20, 200:300] = 1, 2, 0
    wcs = write_tile(tmp_path, shape=shape, scale_arcsec=scale, suffix=suffix, weight=weight, mask=mask, saturate=9.0)
    (files,) = scan_tiles(str(tmp_path)).tiles
    geometry = Geometry(stretch=DES)
    rng = np.random.default_rng(8)
    ra, dec = wcs.all_pix2world(rng.uniform(-5, shape[1] + 5, 60), rng.uniform(-5, shape[0] + 5, 60), 0)
    together = cut(read_tile(files, geometry.bands), ra, dec, geometry)
    assert {"SATURATED", "SOME_MASKED", "PARTIAL_FIELD", "OFF_TILE"} <= {
        name for flags in together.flags for name in Flag.names(int(flags))
    }
    for threads in (1, 3):
        parts = list(cut_parts(open_tile(files, geometry.bands), ra, dec, geometry, rows=7, threads=threads))
        assert [len(part.images) for part in parts] == [7] * 8 + [4]
        assert (np.concatenate([part.images for part in parts]) == together.images).all()
        assert (np.concatenate([part.flags for part in parts]) == together.flags).all()
    for row in range(0, 60, 10):
        alone = cut(open_tile(files, geometry.bands), ra[row : row + 1], dec[row : row + 1], geometry)
        assert (alone.images[0] == together.images[row]).all()
        assert alone.flags[0] == together.flags[row]


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_off_band_is_named_whichever_rows_are_wanted(tmp_path: Path, suffix: str, share: float) -> None:
    wcs = write_tile(tmp_path, shape=(600, 200), suffix=suffix)
    path = tmp_path / f"T1_r{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    (files,) = scan_tiles(str(tmp_path)).tiles
    ra, dec = wcs.all_pix2world([100], [70], 0)
    with pytest.raises(InputError, match=f"T1_r{suffix}.*truncated"):
        cut(open_tile(files, ("z", "r", "g")), ra, dec, Geometry(stretch=DES))


def test_damage_within_a_compressed_band_names_it(tmp_path: Path) -> None:
    wcs = write_tile(tmp_path, shape=(300, 200), suffix=".fits.fz")
    path = tmp_path / "T1_r.fits.fz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    (files,) = scan_tiles(str(tmp_path)).tiles
    ra, dec = wcs.all_pix2world([100], [150], 0)
    with pytest.raises(InputError, match=r"T1_r.fits.fz"):
        cut(open_tile(files, ("z", "r", "g")), ra, dec, Geometry(stretch=DES))


def test_asinh_pixels_of_pan_starrs_become_linear(tmp_path: Path) -> None:
    counts = noise(SHAPE, 5, sigma=30.0).astype(np.float64)
    offset, softening = 2.0, 5.0
    stored = 2.5 / np.log(10) * np.arcsinh((counts - offset) / (2 * softening))
    header = tan_wcs(SHAPE, scale_arcsec=0.25).to_header()
    header.update({"EXPTIME": 100.0, "BOFFSET": offset, "BSOFTEN": softening})
    fits.PrimaryHDU(stored.astype(np.float32), header).writeto(tmp_path / "rings.v3.skycell.1405.053.stk.g.fits")
    (files,) = scan_tiles(str(tmp_path), survey="panstarrs").tiles
    assert read_tile(files, ("g",)).flux[0] == pytest.approx(counts / 1000, rel=1e-3, abs=1e-5)
