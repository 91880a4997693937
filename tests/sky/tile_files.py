"""Small real FITS tiles for tests: known pixels, a TAN WCS, the headers of DES coadds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray


def tan_wcs(shape: tuple[int, int], ra: float = 30.0, dec: float = -30.0, scale_arcsec: float = 0.263) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cd = np.diag([-scale_arcsec, scale_arcsec]) / 3600
    return wcs


def noise(shape: tuple[int, int], seed: int, sigma: float = 3.0) -> NDArray[np.float32]:
    """Counts at zero point 30: 3 is 0.003 nanomaggies."""
    return np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)


def write_band(
    path: Path,
    science: NDArray[Any],
    *,
    wcs: WCS | None,
    band: str | None = "g",
    compressed: bool = False,
    weight: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    zero_point: float | None = 30.0,
    saturate: float | str | None = None,
) -> None:
    header = wcs.to_header() if wcs is not None else fits.Header()
    for key, value in (("BAND", band), ("MAGZERO", zero_point), ("SATURATE", saturate)):
        if value is not None:
            header[key] = value
    planes = [("SCI", science), ("WGT", weight), ("MSK", mask)]
    present = [(name, data) for name, data in planes if data is not None]
    hdus: list[Any] = [fits.PrimaryHDU()]
    for name, data in present:
        if compressed:
            options = {"compression_type": "RICE_1" if data.dtype.kind != "f" else "GZIP_2", "quantize_level": 0.0}
            hdus.append(fits.CompImageHDU(data, header, name=name, **options))
        else:
            hdus.append(fits.ImageHDU(data, header, name=name))
    if mask is not None:
        hdus[-1].header["SATBIT"] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path)


def write_tile(
    folder: Path,
    tile: str = "T1",
    shape: tuple[int, int] = (300, 320),
    bands: str = "grz",
    *,
    ra: float = 30.0,
    dec: float = -30.0,
    scale_arcsec: float = 0.263,
    suffix: str = ".fits",
    seed: int = 0,
    **options: Any,
) -> WCS:
    """One file a band; returns the WCS."""
    wcs = tan_wcs(shape, ra, dec, scale_arcsec)
    for number, band in enumerate(bands):
        path = folder / f"{tile}_{band}{suffix}"
        write_band(path, noise(shape, seed * 10 + number), wcs=wcs, band=band, compressed="fz" in suffix, **options)
    return wcs
