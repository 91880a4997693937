"""What the tiles of known surveys look like: file names, bands, zero point, pixel scale. Imports no Ray, no torch.

A preset only says what the headers of its survey leave out: a zero point that is stated wins, and a WCS of another
scale is an error. `surveys` is another thing: what a simulated sky must imitate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from astropy.io import fits

from deepshadows.outcomes import InputError, UsageError

SCALE_TOLERANCE = 0.02
ZeroPointRule = Callable[[fits.Header], float | None]


def _no_rule(header: fits.Header) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Tiles of one survey.

    Attributes
    ----------
    pixel_scale_arcsec : float
        Of its coadds; a tile of another scale is refused.
    zero_point : float
        Magnitude of one count (1 nanomaggy is 22.5) where neither header nor user state one.
    file_name : pattern
        Names without suffix, with groups `tile` and `band`. Files named otherwise are understood by their headers.
    passed_over : pattern
        Names of files beside the tiles that hold no pixels of a band: weights, masks, exposure maps.
    bands : mapping
        The survey's names of filters to the letters that networks know.
    rule : callable
        Zero point from the survey's own keywords, None where they lack.
    """

    name: str
    pixel_scale_arcsec: float
    zero_point: float
    file_name: re.Pattern[str]
    passed_over: re.Pattern[str] = re.compile(r"(?!)")
    bands: Mapping[str, str] = field(default_factory=dict)
    rule: ZeroPointRule = _no_rule

    def band(self, text: str) -> str | None:
        """The letter of a filter as this survey writes it."""
        return self.bands.get(text.strip())

    def zero_point_of(self, header: fits.Header, given: float | None) -> float:
        """By the survey's own keywords, else as the user says, else the survey's."""
        by_rule = self.rule(header)
        if by_rule is not None:
            return by_rule
        return self.zero_point if given is None else given

    def check_scale(self, scale_arcsec: float, where: str) -> None:
        """An `InputError` where a tile has another scale than the survey: it would be of another survey, or resampled
        with fluxes that mean something else."""
        if abs(scale_arcsec / self.pixel_scale_arcsec - 1) > SCALE_TOLERANCE:
            raise InputError(
                f'{where}: {scale_arcsec:.4f}"/px; tiles of --survey {self.name} have {self.pixel_scale_arcsec:g}"/px; '
                "leave --survey out and state --zero-point where headers lack it"
            )


def _positive(header: fits.Header, key: str) -> float | None:
    """A positive number of a header, None where there is none."""
    try:
        value = float(header.get(key, 0))
    except (TypeError, ValueError):
        return None
    return value if 0 < value < math.inf else None


def _fluxmag0(header: fits.Header) -> float | None:
    counts = _positive(header, "FLUXMAG0")
    return None if counts is None else 2.5 * math.log10(counts)


def _exposure(header: fits.Header) -> float | None:
    """Pan-STARRS stacks are counts of the whole exposure, zero point 25 for one second."""
    seconds = _positive(header, "EXPTIME")
    return None if seconds is None else 25.0 + 2.5 * math.log10(seconds)


_HSC_BANDS = {f"HSC-{letter}{version}": letter.lower() for letter in "GRIZY" for version in ("", "2")}
_RUBIN_BANDS = {
    f"{letter}_{number}": letter
    for letter, numbers in {
        "u": ("02", "24"),
        "g": ("01", "6"),
        "r": ("03", "57"),
        "i": ("06", "39"),
        "z": ("03", "20"),
        "y": ("04", "10"),
    }.items()
    for number in numbers
}

_ALL = (
    Preset(
        name="des",
        pixel_scale_arcsec=0.263,
        zero_point=30.0,
        file_name=re.compile(r"^(?P<tile>DES\d{4}[+-]\d{4})(?:_r\d+p\d+)?_(?P<band>[grizY])(?:_nobkg)?$"),
        passed_over=re.compile(r"_(?:det|psfcat|cat|msk|wgt)$"),
    ),
    Preset(
        name="legacy",
        pixel_scale_arcsec=0.262,
        zero_point=22.5,
        file_name=re.compile(r"^legacysurvey-(?P<tile>\d{4}[pm]\d{3})-image-(?P<band>[griz])$"),
        passed_over=re.compile(
            r"^legacysurvey-.*-(?:invvar|nexp|depth|galdepth|psfsize|psfdepth|chi2|model|blobmodel|maskbits|wisemodel)\b"
        ),
    ),
    Preset(
        name="hsc",
        pixel_scale_arcsec=0.168,
        zero_point=27.0,
        file_name=re.compile(r"^calexp-(?P<band>HSC-[GRIZY]2?)-(?P<tile>\d+-\d+,\d+)$"),
        passed_over=re.compile(r"^(?:psf|PSF)[-_]|^(?:det_bkgd|bkgd|det|meas|forced_src|ref)-"),
        bands=_HSC_BANDS,
        rule=_fluxmag0,
    ),
    Preset(
        name="kids",
        pixel_scale_arcsec=0.2,
        zero_point=0.0,
        file_name=re.compile(r"^(?P<tile>KiDS_DR[\d.]+_[\d.]+_-?[\d.]+)_(?P<band>[ugriZ])(?:_sci)?$"),
        passed_over=re.compile(r"_(?:wei|msk|src|flag)$"),
        bands={f"{letter}_SDSS": letter for letter in "ugri"},
    ),
    Preset(
        name="panstarrs",
        pixel_scale_arcsec=0.25,
        zero_point=25.0,
        file_name=re.compile(
            r"^(?P<tile>rings\.v\d+\.skycell\.\d+\.\d+)\.stk\.(?P<band>[grizy])(?:\.unconv)?$", re.IGNORECASE
        ),
        passed_over=re.compile(r"\.(?:mask|wt|exp|expwt|num|var|target\.psf)$"),
        bands={f"{letter}.00000": letter for letter in "grizy"},
        rule=_exposure,
    ),
    Preset(
        name="sdss",
        pixel_scale_arcsec=0.396,
        zero_point=22.5,
        file_name=re.compile(r"^frame-(?P<band>[ugriz])-(?P<tile>\d{6}-\d-\d{4})$"),
        passed_over=re.compile(r"^(?:fpM|psField|photoObj|fpObjc)-"),
    ),
    Preset(
        name="rubin",
        pixel_scale_arcsec=0.2,
        zero_point=31.4,  # nanojansky
        file_name=re.compile(
            r"^(?:deep_?[cC]oadd(?:_calexp|_predetection)?)[_-](?P<tile>\d+[_-]\d+)[_-](?P<band>[ugrizy])(?:[_-].*)?$"
        ),
        bands=_RUBIN_BANDS,
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


def preset_named(name: str | None) -> Preset | None:
    """The preset of a survey, None for none; an unknown name is a `UsageError`."""
    if name is None:
        return None
    if name not in PRESETS:
        raise UsageError(f"--survey {name}: not known; one of {', '.join(PRESETS)}")
    return PRESETS[name]
