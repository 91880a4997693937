"""Draws what is on a simulated sky: the truth rows of galaxies, stars and artifacts. Imports numpy, no pixels.

LSBGs follow DOMAIN.md section 6 (DES Y3, arXiv:2006.04294, figures 4 to 8); the rest follows the number counts and
colours of ordinary survey fields. Every object carries its own seed, so its drawing depends on no other object.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepshadows.sky.surveys import Survey


class Kind(enum.StrEnum):
    """What an object is. `LSBG` and `DWARF` have label 1."""

    LSBG = "lsbg"
    DWARF = "dwarf"
    """LSBG larger and fainter than most of a survey's, as nearby groups and clusters hold."""
    STAR = "star"
    GALAXY = "galaxy"
    STAR_HALO = "star_halo"
    """Bright saturated star: halo, diffraction spikes, bleed trail, reflections."""
    BIG_GALAXY = "big_galaxy"
    """Large yellow elliptical whose outskirts, shells and tidal debris reach far from its centre."""
    SPIRAL = "spiral"
    """Spiral galaxy with blue arms and knots."""
    IRREGULAR = "irregular"
    """Clumpy blue galaxy brighter than an LSBG."""
    BLEND = "blend"
    """Compact galaxies close enough to be taken for one extended source."""
    CIRRUS = "cirrus"
    """Patch of Galactic cirrus or of background gradient."""
    TRAIL = "trail"
    """Satellite trail, in one or two bands."""


REFERENCE_AREA_ARCSEC2 = (2048 * 0.263) ** 2
"""Counts below are means for a DES tile of 2048 pixels; other areas scale."""

MEAN_COUNTS = {
    Kind.GALAXY: 1700.0,
    Kind.STAR: 280.0,
    Kind.CIRRUS: 5.0,
    Kind.STAR_HALO: 30.0,
    Kind.BIG_GALAXY: 26.0,
    Kind.SPIRAL: 18.0,
    Kind.LSBG: 52.0,
    Kind.DWARF: 16.0,
    Kind.IRREGULAR: 16.0,
    Kind.BLEND: 28.0,
    Kind.TRAIL: 0.6,
}
"""So that a tile gives about as many artifacts as LSBGs that pass the DES cuts. The mix is not that of the sky: of 50
real artifacts with labels 13 lie by a bright star and 17 by a bright galaxy; of the simulated ones fewer do."""

CROWDING = {Kind.STAR: 0.5, Kind.STAR_HALO: 0.3, Kind.GALAXY: 0.2}
"""Scatter (natural logarithm) of the counts from tile to tile: low Galactic latitudes are crowded."""

COMPANIONS = {Kind.BIG_GALAXY: 4.0, Kind.SPIRAL: 2.0, Kind.STAR_HALO: 2.0}
"""Mean number of small galaxies within `COMPANION_ARCSEC` of each, beyond those that lie there by chance."""
COMPANION_ARCSEC = (4.0, 22.0)
NEAR_BRIGHT_ARCSEC = 22.0
LOST_NEAR_BRIGHT = 0.8
"""Share of LSBGs so near to such an object that nobody calls them LSBGs: its light is on them. They are left out."""

EDGE_PIX = 24
"""Rare objects keep this distance from the edge of their tile; ordinary ones keep none."""


@dataclass(frozen=True, kw_only=True)
class SkyObject:
    """One truth row. A quantity that a kind does not have is NaN, a band without light of infinite magnitude."""

    kind: Kind
    x: float
    """Column of the centre, pixels from the centre of the first pixel."""
    y: float
    mag: tuple[float, float, float, float]
    """Total magnitudes in g, r, i, z."""
    r_eff_arcsec: float
    """Circularised half-light radius."""
    sersic_n: float
    ellipticity: float
    """1 - b/a."""
    angle_deg: float
    """Of the major axis, from +x to +y."""
    seed: int
    """Of everything else that is random about the object: knots, arms, spikes."""

    @property
    def label(self) -> int:
        return int(self.kind in (Kind.LSBG, Kind.DWARF))

    @property
    def mu_eff_g(self) -> float:
        """Mean surface brightness within the half-light radius, g, mag/arcsec2."""
        return self.mag[0] + float(2.5 * np.log10(2 * np.pi * self.r_eff_arcsec**2))


@dataclass(frozen=True)
class Shape:
    """What the draw of one kind decides; the rest is common to all kinds."""

    mag: tuple[float, float, float, float]
    r_eff_arcsec: float
    sersic_n: float
    ellipticity: float


def draw_population(rng: np.random.Generator, survey: Survey, size_pix: int) -> list[SkyObject]:
    """Everything that is on one tile, in the order of drawing.

    Parameters
    ----------
    rng : numpy.random.Generator
        Of this tile alone.
    survey : Survey
        Gives the pixel scale.
    size_pix : int
        Side of the tile.
    """
    area = (size_pix * survey.pixel_scale_arcsec) ** 2 / REFERENCE_AREA_ARCSEC2
    objects: list[SkyObject] = []
    for kind, mean in MEAN_COUNTS.items():
        crowding = float(rng.lognormal(0, CROWDING.get(kind, 0.0)))
        edge = 0 if kind in (Kind.GALAXY, Kind.STAR) else EDGE_PIX
        bright = np.array([(item.x, item.y) for item in objects if item.kind in COMPANIONS]).reshape(-1, 2)
        for _ in range(int(rng.poisson(mean * area * crowding))):
            x, y = rng.uniform(edge - 0.5, size_pix - edge - 0.5, 2)
            if kind in (Kind.LSBG, Kind.DWARF) and rng.random() < LOST_NEAR_BRIGHT:
                near = np.hypot(*(bright - (x, y)).T) * survey.pixel_scale_arcsec
                if (near < NEAR_BRIGHT_ARCSEC).any():
                    continue
            objects.append(make_object(rng, kind, float(x), float(y)))
            objects += _companions(rng, objects[-1], survey)
    return objects


def _companions(rng: np.random.Generator, item: SkyObject, survey: Survey) -> list[SkyObject]:
    """Small galaxies in the light of a large galaxy or a bright star, where they are detected as if they were wide."""
    companions = []
    for _ in range(int(rng.poisson(COMPANIONS.get(item.kind, 0.0)))):
        far = float(rng.uniform(*COMPANION_ARCSEC)) / survey.pixel_scale_arcsec
        where = float(rng.uniform(0, 2 * np.pi))
        x, y = item.x + far * float(np.cos(where)), item.y + far * float(np.sin(where))
        companions.append(make_object(rng, Kind.GALAXY, x, y, _companion))
    return companions


def make_object(
    rng: np.random.Generator, kind: Kind, x: float, y: float, draw: Callable[[np.random.Generator], Shape] | None = None
) -> SkyObject:
    """One object of a kind at a place (pixels), of the shape that its kind, or else `draw`, gives it."""
    shape = (draw or _DRAWS[kind])(rng)
    return SkyObject(
        kind=kind,
        x=x,
        y=y,
        mag=shape.mag,
        r_eff_arcsec=shape.r_eff_arcsec,
        sersic_n=shape.sersic_n,
        ellipticity=shape.ellipticity,
        angle_deg=float(rng.uniform(0, 180)),
        seed=int(rng.integers(2**62)),
    )


def _quantile(rng: np.random.Generator, share: list[float], value: list[float]) -> float:
    """A draw from the distribution whose cumulative shares and values are given."""
    return float(np.interp(rng.random(), share, value))


def _colours(
    mag_g: float, g_i: float, i_z: float, scatter: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """g, r, i, z magnitudes; galaxies lie along g-r = 0.7 (g-i)."""
    g_r = 0.7 * g_i + float(rng.normal(0, scatter))
    mag_i = mag_g - g_i
    return (mag_g, mag_g - g_r, mag_i, mag_i - i_z - float(rng.normal(0, scatter)))


def _lsbg(rng: np.random.Generator) -> Shape:
    """Quantiles of size and colour as in DOMAIN section 6; surface brightness is 0.2 mag fainter.

    With the published medians the centres of simulated cut-outs are 1.1 to 1.3 times as bright above the sky as
    those of 49 labelled real ones: 84 in g against 73 and 80 of their two sources, blank sky 32.
    """
    red = rng.random() < 1 / 3
    r_eff = float(np.exp(_quantile(rng, [0, 0.5, 0.8, 0.9, 0.97, 0.995, 1], list(np.log([2.5, 3.8, 5, 6, 9, 14, 18])))))
    faint = [24.3, 25.1, 25.9, 26.4, 27.0] if red else [24.3, 24.85, 25.5, 26.1, 27.0]
    mu_eff = _quantile(rng, [0, 0.5, 0.85, 0.95, 1], faint)
    mag_g = mu_eff - 2.5 * np.log10(2 * np.pi * r_eff**2)
    g_i = float(np.clip(rng.normal(0.80, 0.09) if red else rng.normal(0.46, 0.08), 0.0, 1.2))
    sersic_n = _quantile(rng, [0, 0.1, 0.5, 0.9, 1], [0.5, 0.7, 1.05, 1.6, 2.2])
    ellipticity = _quantile(rng, [0, 0.5, 1], [0.02, 0.28, 0.69])
    return Shape(_colours(float(mag_g), g_i, 0.08 + 0.15 * g_i, 0.02, rng), r_eff, round(sersic_n, 1), ellipticity)


def _dwarf(rng: np.random.Generator) -> Shape:
    """Smooth, neither blue nor red, up to 2 mag fainter in the centre than half of the LSBGs."""
    r_eff = float(np.exp(rng.uniform(np.log(3.0), np.log(12))))
    mu_eff = float(rng.uniform(25.2, 27.2))
    mag_g = mu_eff - 2.5 * float(np.log10(2 * np.pi * r_eff**2))
    g_i = float(rng.normal(0.7, 0.12))
    sersic_n = round(float(rng.uniform(0.5, 1.2)), 1)
    return Shape(_colours(mag_g, g_i, 0.08 + 0.15 * g_i, 0.02, rng), r_eff, sersic_n, float(rng.uniform(0.02, 0.6)))


def _galaxy(rng: np.random.Generator) -> Shape:
    """Number counts rising as 10^(0.35 r); half-light radii fall from 2.5" at r=17.5 to 0.35" at r=24.5."""
    return _galaxy_of(_from_counts(rng, 17.5, 24.6, 0.35), rng)


def _companion(rng: np.random.Generator) -> Shape:
    return _galaxy_of(_from_counts(rng, 20.5, 23.4, 0.2), rng)


def _galaxy_of(mag_r: float, rng: np.random.Generator) -> Shape:
    early = rng.random() < 0.35
    r_eff = 2.2 * 10 ** (-0.115 * (mag_r - 17.5)) * float(rng.lognormal(0, 0.3))
    if early:
        g_r, r_i, i_z = rng.normal(1.1, 0.3), rng.normal(0.6, 0.2), rng.normal(0.35, 0.1)
    else:
        g_r, r_i, i_z = rng.normal(0.55, 0.2), rng.normal(0.3, 0.12), rng.normal(0.15, 0.1)
    mag = (mag_r + float(g_r), mag_r, mag_r - float(r_i), mag_r - float(r_i) - float(i_z))
    return Shape(mag, min(r_eff, 2.2), 2.5 if early else 1.0, float(rng.uniform(0.05, 0.7)))


def _star(rng: np.random.Generator) -> Shape:
    """Stars fainter than saturation, along the stellar locus; most are red dwarfs."""
    return Shape(_stellar(_from_counts(rng, 16.0, 24.0, 0.12), rng), 0.0, float("nan"), 0.0)


def _star_halo(rng: np.random.Generator) -> Shape:
    """Bright stars are mostly of types F to K."""
    return Shape(_stellar(_from_counts(rng, 11.5, 16.0, 0.2), rng, reddest=1.3), 0.0, float("nan"), 0.0)


def _stellar(mag_r: float, rng: np.random.Generator, reddest: float = 3.0) -> tuple[float, float, float, float]:
    g_i = _quantile(rng, [0, 0.3, 0.6, 1], [0.2, 0.7, min(1.7, reddest), reddest])
    g_r = min(0.72 * g_i, 1.4 + 0.08 * g_i)
    r_i = g_i - g_r
    return (mag_r + g_r, mag_r, mag_r - r_i, mag_r - r_i - 0.45 * r_i)


def _big_galaxy(rng: np.random.Generator) -> Shape:
    r_eff = float(np.exp(rng.uniform(np.log(1.8), np.log(9))))
    mu_eff = float(rng.uniform(20.3, 23.4))
    g_i = float(rng.normal(1.1, 0.1))
    mag_g = mu_eff - 2.5 * float(np.log10(2 * np.pi * r_eff**2))
    return Shape(_colours(mag_g, g_i, 0.3, 0.02, rng), r_eff, 4.0, float(rng.uniform(0, 0.5)))


def _spiral(rng: np.random.Generator) -> Shape:
    """Half of them large and bright, half small and as faint as an LSBG's neighbourhood."""
    small = rng.random() < 0.5
    r_eff = float(np.exp(rng.uniform(np.log(2.2), np.log(4.5)) if small else rng.uniform(np.log(3), np.log(11))))
    mu_eff = float(rng.uniform(23.2, 24.9) if small else rng.uniform(21.8, 24.0))
    g_i = float(rng.normal(0.6, 0.12))
    mag_g = mu_eff - 2.5 * float(np.log10(2 * np.pi * r_eff**2))
    return Shape(_colours(mag_g, g_i, 0.18, 0.02, rng), r_eff, 1.0, float(rng.uniform(0.05, 0.55)))


def _irregular(rng: np.random.Generator) -> Shape:
    r_eff = float(np.exp(rng.uniform(np.log(2.4), np.log(6))))
    mu_eff = float(rng.uniform(23.2, 24.8))
    g_i = float(rng.normal(0.42, 0.12))
    mag_g = mu_eff - 2.5 * float(np.log10(2 * np.pi * r_eff**2))
    return Shape(_colours(mag_g, g_i, 0.05, 0.02, rng), r_eff, 1.0, float(rng.uniform(0.1, 0.65)))


def _blend(rng: np.random.Generator) -> Shape:
    """Total light and extent of the group; its members and their common envelope share the light."""
    mag_g = float(rng.uniform(20.8, 22.6))
    g_i = float(rng.normal(0.7, 0.25))
    return Shape(_colours(mag_g, g_i, 0.2, 0.03, rng), float(rng.uniform(2.0, 4.2)), 1.0, float(rng.uniform(0.1, 0.6)))


def _cirrus(rng: np.random.Generator) -> Shape:
    """Light of the patch as if all of it lay within twice its half-light radius."""
    r_eff = float(np.exp(rng.uniform(np.log(10), np.log(28))))
    mu_eff = float(rng.uniform(26.0, 27.6))
    g_i = float(rng.normal(0.75, 0.2))
    mag_g = mu_eff - 2.5 * float(np.log10(2 * np.pi * r_eff**2))
    return Shape(_colours(mag_g, g_i, 0.2, 0.03, rng), r_eff, float("nan"), float(rng.uniform(0, 0.6)))


def _trail(rng: np.random.Generator) -> Shape:
    """Magnitudes of one arcsecond of trail; infinite where the band was exposed at another time."""
    bands = rng.random(4) < 0.4
    bands[int(rng.integers(4))] = True
    mag = float(rng.uniform(22.8, 25.0))
    g, r, i, z = (mag if on else float("inf") for on in bands)
    return Shape((g, r, i, z), float(rng.uniform(0.8, 2.0)), float("nan"), 1.0)


def _from_counts(rng: np.random.Generator, brightest: float, faintest: float, slope: float) -> float:
    """A magnitude from counts that rise as 10^(slope m)."""
    low, high = 10 ** (slope * brightest), 10 ** (slope * faintest)
    return float(np.log10(rng.uniform(low, high)) / slope)


_DRAWS: dict[Kind, Callable[[np.random.Generator], Shape]] = {
    Kind.LSBG: _lsbg,
    Kind.DWARF: _dwarf,
    Kind.STAR: _star,
    Kind.GALAXY: _galaxy,
    Kind.STAR_HALO: _star_halo,
    Kind.BIG_GALAXY: _big_galaxy,
    Kind.SPIRAL: _spiral,
    Kind.IRREGULAR: _irregular,
    Kind.BLEND: _blend,
    Kind.CIRRUS: _cirrus,
    Kind.TRAIL: _trail,
}


def magnitudes(objects: list[SkyObject]) -> NDArray[np.float64]:
    """Magnitudes of all objects, shape (N, 4), bands g, r, i, z."""
    return np.array([item.mag for item in objects], dtype=np.float64).reshape(-1, 4)
