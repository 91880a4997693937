"""Draws what is mistaken for LSBGs: halos, outskirts, knots, blends, cirrus, trails. Imports no Ray, touches no files.

Smooth extended light is computed in numpy without convolution: it is much wider than the seeing.
"""

from __future__ import annotations

import galsim
import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma

from deepshadows.sky.canvas import Canvas, Window, elliptical_radius, moffat_width
from deepshadows.sky.population import SkyObject
from deepshadows.sky.rendering import add_moffats, counts, half_size, knots, sersic

F64 = NDArray[np.float64]

HALO_MAG_AT_10_ARCSEC = 10.6
"""Surface brightness (mag/arcsec2) at 10" of the aureole of a star of magnitude 0 (King 1971, less what sky
subtraction takes away)."""


def draw_star_halo(canvas: Canvas, item: SkyObject) -> None:
    """A saturated star: Moffat core, aureole, four diffraction spikes, a disc of reflected light, a bleed trail.

    Clipping at full well and the mask bit come last, for the whole tile (`simulation.saturate`).
    """
    rng = np.random.default_rng(item.seed)
    window = canvas.window(item.x, item.y, canvas.pix(16.0) * 10 ** (0.15 * (16 - item.mag[1])))
    if window.empty:
        return
    light = counts(canvas, item)
    radius2 = window.dx**2 + window.dy**2
    radius_arcsec = np.sqrt(radius2) * canvas.survey.pixel_scale_arcsec
    pixel_area = canvas.survey.pixel_scale_arcsec**2
    for band, fwhm in enumerate(canvas.fwhm_pix):
        width = moffat_width(fwhm, 2.6)
        core = 1.6 / (np.pi * width**2) * (1 + radius2 / width**2) ** -2.6
        canvas.flux[band, window.rows, window.columns] += (light[band] * core).astype(np.float32)
    aureole = 10 ** (-0.4 * HALO_MAG_AT_10_ARCSEC) * 100 / (radius_arcsec**2 + 9) * np.exp(-radius_arcsec / 30)
    tint = rng.lognormal(0, 0.12, 4) * np.array([1.0, 0.85, 0.9, 1.05])
    canvas.add_shape(window, aureole * pixel_area, light * tint)
    _draw_reflection(canvas, window, radius_arcsec, light * pixel_area, rng)
    canvas.add_shape(window, _spikes(canvas, window, rng), light * rng.lognormal(0, 0.25, 4))
    if rng.random() < 0.3:  # a streak in one band only, as coadds of few exposures keep
        streak = _ray(window, float(rng.uniform(80, 100)), canvas.pix(0.5), canvas.pix(25))
        canvas.add_shape(window, streak * 0.02, 0.15 * light * np.eye(4)[int(rng.choice([0, 3, 3]))])
    for _ in range(int(rng.poisson(3.0))):
        _draw_plume(canvas, item, rng, far_arcsec=float(rng.uniform(6, 26)), colour=light / light.mean() * tint**0.5)
    _draw_bleed(canvas, window, item, light, rng)


def _draw_reflection(canvas: Canvas, window: Window, radius: F64, light: F64, rng: np.random.Generator) -> None:
    """Disc with soft edges around the star, pink in z, r, g; and, off its centre, a large faint ghost."""
    edge = float(rng.uniform(5.5, 8.0))
    disc = 10 ** (-0.4 * 9.3) / (1 + np.exp((radius - edge) / 0.35))
    canvas.add_shape(window, disc, light * rng.lognormal(0, 0.15, 4) * np.array([0.9, 0.7, 0.75, 1.2]))
    angle, far = rng.uniform(0, 2 * np.pi), float(rng.uniform(10, 30))
    scale = canvas.survey.pixel_scale_arcsec
    away = np.hypot(window.dx * scale - far * np.cos(angle), window.dy * scale - far * np.sin(angle))
    ghost = 10 ** (-0.4 * 12.6) / (1 + np.exp((away - rng.uniform(3, 7)) / 1.0))
    canvas.add_shape(window, ghost, light * rng.lognormal(0, 0.2, 4))


def _spikes(canvas: Canvas, window: Window, rng: np.random.Generator) -> F64:
    """Two crossed diffraction spikes along the diagonals, 0.6 % of the light."""
    turn = float(rng.normal(0, 3))
    length = canvas.pix(12.0)
    both = _ray(window, 45 + turn, canvas.pix(0.45), length) + _ray(window, 135 + turn, canvas.pix(0.45), length)
    return 0.003 * both


def _ray(window: Window, angle_deg: float, width_pix: float, length_pix: float) -> F64:
    """A thin line of unit flux through the centre, fading to both sides."""
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    along = np.abs(window.dx * cos + window.dy * sin)
    across = window.dy * cos - window.dx * sin
    wide = width_pix * (1 + along / (8 * length_pix))
    profile = np.exp(-0.5 * (across / wide) ** 2) / (np.sqrt(2 * np.pi) * wide)
    return np.asarray(profile * np.exp(-along / length_pix) / (2 * length_pix))


def _draw_bleed(canvas: Canvas, window: Window, item: SkyObject, light: F64, rng: np.random.Generator) -> None:
    """Charge spilt along the rows of the detector: bars at full well, each band its own length."""
    wells = full_well(canvas)
    for band in range(len(light)):
        over = light[band] / wells[band]
        length = canvas.pix(0.35) * np.sqrt(over / 10) * rng.lognormal(0, 0.4)
        if over < 200 or length < canvas.pix(2):
            continue
        bar = (np.abs(window.dx) < length) & (np.abs(window.dy) < max(1.0, length / 14))
        view = canvas.flux[band, window.rows, window.columns]
        view[bar] = np.maximum(view[bar], np.float32(1.05 * wells[band]))


def full_well(canvas: Canvas) -> F64:
    """Counts at which each band saturates, shape (B,): the peak of a star of the survey's saturation magnitude."""
    mags = np.array([canvas.survey.saturation_mag[band] for band in canvas.survey.bands])
    width = moffat_width(canvas.fwhm_pix)
    return np.asarray(canvas.survey.counts(mags) * 2.5 / (np.pi * width**2))


def draw_big_galaxy(canvas: Canvas, item: SkyObject) -> None:
    """A de Vaucouleurs galaxy with shells and tidal plumes at 1.2 to 3.5 half-light radii."""
    rng = np.random.default_rng(item.seed)
    window = canvas.window(item.x, item.y, min(7 * canvas.pix(item.r_eff_arcsec), 500))
    light = counts(canvas, item)
    r_eff = canvas.pix(item.r_eff_arcsec)
    radius = np.hypot(elliptical_radius(window, item.ellipticity, item.angle_deg), 0.5 * canvas.fwhm_pix.mean())
    norm = 2 * np.pi * 4 * r_eff**2 * np.exp(7.669) * 7.669**-8 * gamma(8)
    canvas.add_shape(window, np.exp(-7.669 * ((radius / r_eff) ** 0.25 - 1)) / norm, light)
    colour = light / light[0]
    for _ in range(int(rng.poisson(2.5))):
        far = item.r_eff_arcsec * float(rng.uniform(1.2, 3.5))
        _draw_plume(canvas, item, rng, far_arcsec=far, colour=colour)


def _draw_plume(canvas: Canvas, item: SkyObject, rng: np.random.Generator, *, far_arcsec: float, colour: F64) -> None:
    """Diffuse light bent around a galaxy or star, peak surface brightness 24.3 to 26.2 mag/arcsec2 (colour 1)."""
    where = float(rng.uniform(0, 2 * np.pi))
    far = canvas.pix(far_arcsec)
    sigma_across = canvas.pix(float(rng.uniform(1.0, 3.0)))
    sigma_along = sigma_across * float(rng.uniform(1.0, 2.5))
    x, y = item.x + far * np.cos(where), item.y + far * np.sin(where)
    window = canvas.window(x, y, 3 * sigma_along)
    if window.empty:
        return
    from_galaxy_x, from_galaxy_y = window.dx + far * np.cos(where), window.dy + far * np.sin(where)
    outward = np.hypot(from_galaxy_x, from_galaxy_y) - far
    turned = np.arctan2(from_galaxy_y, from_galaxy_x) - where
    along = far * np.arctan2(np.sin(turned), np.cos(turned))
    shape = np.exp(-0.5 * ((outward / sigma_across) ** 2 + (along / sigma_along) ** 2))
    peak_mag = float(rng.uniform(24.3, 26.2))
    peak = canvas.survey.counts(np.array(peak_mag)) * canvas.survey.pixel_scale_arcsec**2
    canvas.add_shape(window, shape, colour * float(peak))


def draw_spiral(canvas: Canvas, item: SkyObject) -> None:
    """A disc with a red bulge, two to four logarithmic arms that outreach it, and blue knots on the arms."""
    rng = np.random.default_rng(item.seed)
    light, r_eff = counts(canvas, item), canvas.pix(item.r_eff_arcsec)
    window = canvas.window(item.x, item.y, min(6 * r_eff, 450))
    radius = np.hypot(elliptical_radius(window, item.ellipticity, item.angle_deg), 1.0)
    angle = _disc_angle(window, item)
    arms, pitch = int(rng.integers(2, 4)), np.tan(np.deg2rad(float(rng.uniform(14, 35))))
    phase, h = float(rng.uniform(0, 2 * np.pi)), r_eff / 1.678
    mottle = _wisps(rng, window.dx.shape[1], window.dy.shape[0], item)
    turn = arms * (angle - np.log(radius / r_eff) / pitch) - phase
    lopsided = 1 + float(rng.uniform(0, 0.6)) * np.cos(angle - phase)
    wave = np.exp(1.5 * (np.cos(turn + 0.8 * mottle) - 1)) * np.exp(0.5 * mottle) * lopsided
    disc = np.exp(-radius / h) / (2 * np.pi * h**2)
    arm_light = wave * np.exp(-radius / (1.5 * h)) / (2 * np.pi * (1.5 * h) ** 2) * 2.5
    bulge = np.exp(-0.5 * (radius / (0.2 * r_eff)) ** 2) / (2 * np.pi * (0.2 * r_eff) ** 2)
    blue, red = 10 ** (-0.4 * np.array([-0.15, 0.0, 0.1, 0.15])), 10 ** (-0.4 * np.array([0.3, 0.0, -0.15, -0.25]))
    canvas.add_shape(window, disc, 0.45 * light)
    canvas.add_shape(window, arm_light, 0.45 * light * blue)
    canvas.add_shape(window, bulge, float(rng.uniform(0.02, 0.15)) * light * red)
    _draw_arm_knots(canvas, item, rng, arms=arms, pitch=pitch, phase=phase, light=0.1 * light * blue)


def _disc_angle(window: Window, item: SkyObject) -> F64:
    """Azimuth in the plane of an inclined disc, radians, shape (H, W)."""
    cos, sin = np.cos(np.deg2rad(item.angle_deg)), np.sin(np.deg2rad(item.angle_deg))
    along = window.dx * cos + window.dy * sin
    across = (window.dy * cos - window.dx * sin) / (1 - item.ellipticity)
    return np.asarray(np.arctan2(across, along))


def _draw_arm_knots(
    canvas: Canvas, item: SkyObject, rng: np.random.Generator, *, arms: int, pitch: float, phase: float, light: F64
) -> None:
    count = int(rng.integers(8, 24))
    r_eff = canvas.pix(item.r_eff_arcsec)
    radius = r_eff * rng.uniform(0.5, 3.2, count)
    azimuth = np.log(radius / r_eff) / pitch + (phase + 2 * np.pi * rng.integers(0, arms, count)) / arms
    azimuth += rng.normal(0, 0.12, count)
    axis_ratio = 1 - item.ellipticity
    along = radius * np.cos(azimuth) / np.sqrt(axis_ratio)
    across = radius * np.sin(azimuth) * np.sqrt(axis_ratio)
    cos, sin = np.cos(np.deg2rad(item.angle_deg)), np.sin(np.deg2rad(item.angle_deg))
    weights = rng.dirichlet(np.full(count, 1.5))
    add_moffats(
        canvas,
        item.x + along * cos - across * sin,
        item.y + along * sin + across * cos,
        weights[:, None] * light[None, :] * rng.lognormal(0, 0.1, (count, 4)),
        canvas.pix(1.0) * rng.uniform(0.3, 1.6, count),
        rng.uniform(0.5, 1.0, count),
        rng.uniform(0, np.pi, count),
    )


def draw_irregular(canvas: Canvas, item: SkyObject) -> None:
    """A blue galaxy with a sixth to a half of its light in knots."""
    rng = np.random.default_rng(item.seed)
    light = counts(canvas, item)
    share = float(rng.uniform(0.25, 0.6))
    parts = [(sersic(item), (1 - share) * light)]
    parts += knots(rng, item, share * light, count=int(rng.integers(5, 14)), spread=0.7, blueness=1.0)
    canvas.add_profile(parts, item.x, item.y, half_size(canvas, item))


def draw_blend(canvas: Canvas, item: SkyObject) -> None:
    """Two to five compact galaxies, each with its own colour, in a common envelope of up to half the light."""
    rng = np.random.default_rng(item.seed)
    count = int(rng.integers(2, 6))
    light, envelope = counts(canvas, item), float(rng.uniform(0.2, 0.6))
    canvas.add_profile([(sersic(item), envelope * light)], item.x, item.y, half_size(canvas, item))
    r_eff = canvas.pix(item.r_eff_arcsec)
    along, across = rng.normal(0, 0.6 * r_eff, (2, count)) * [[1.0], [1 - item.ellipticity]]
    cos, sin = np.cos(np.deg2rad(item.angle_deg)), np.sin(np.deg2rad(item.angle_deg))
    colour = rng.normal(0, 0.3, (count, 1)) * np.array([[-1.0, 0.0, 0.4, 0.6]])
    add_moffats(
        canvas,
        item.x + along * cos - across * sin,
        item.y + along * sin + across * cos,
        rng.dirichlet(np.full(count, 4.0))[:, None] * (1 - envelope) * light[None, :] * 10 ** (-0.4 * colour),
        canvas.pix(1.0) * rng.uniform(0.4, 1.2, count),
        rng.uniform(0.4, 1.0, count),
        rng.uniform(0, np.pi, count),
    )


def draw_cirrus(canvas: Canvas, item: SkyObject) -> None:
    """A patch of a random field with power about k^-4, stretched along one direction, that fades to nothing."""
    rng = np.random.default_rng(item.seed)
    half = min(3.5 * canvas.pix(item.r_eff_arcsec), 600)
    window = canvas.window(item.x, item.y, half)
    if window.empty:
        return
    field = _wisps(rng, window.dx.shape[1], window.dy.shape[0], item)
    sigma = half / 3.2 * np.sqrt(1 - item.ellipticity)  # 3.2 sigma at the edge along the longer axis
    fade = np.exp(-0.5 * (elliptical_radius(window, item.ellipticity, item.angle_deg) / sigma) ** 2)
    shape = np.logaddexp(0, 2 * field) * fade
    canvas.add_shape(window, shape / float(shape.sum()), counts(canvas, item))


def _wisps(rng: np.random.Generator, width: int, height: int, item: SkyObject) -> F64:
    """Gaussian random field of zero mean and unit variance, shape (height, width)."""
    side = galsim.Image.good_fft_size(max(width, height))
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    k_x, k_y = np.fft.rfftfreq(side)[None, :] * side, np.fft.fftfreq(side)[:, None] * side
    cos, sin = np.cos(np.deg2rad(item.angle_deg)), np.sin(np.deg2rad(item.angle_deg))
    squeeze = float(rng.uniform(1.0, 2.5))
    k = np.sqrt((k_x * cos + k_y * sin) ** 2 * squeeze + (k_y * cos - k_x * sin) ** 2 / squeeze + 1.5**2)
    field = np.fft.irfft2(spectrum * k ** -float(rng.uniform(1.7, 2.4)), s=(side, side))[:height, :width]
    return np.asarray((field - field.mean()) / field.std())


def draw_trail(canvas: Canvas, item: SkyObject) -> None:
    """A satellite trail across the tile that brightens and fades as the satellite turns."""
    rng = np.random.default_rng(item.seed)
    height, width = canvas.flux.shape[1:]
    window = canvas.window(item.x, item.y, 2 * max(height, width))
    cos, sin = np.cos(np.deg2rad(item.angle_deg)), np.sin(np.deg2rad(item.angle_deg))
    along = window.dx * cos + window.dy * sin
    across = window.dy * cos - window.dx * sin
    sigma = canvas.pix(item.r_eff_arcsec)
    flicker = np.cos(2 * np.pi * along / canvas.pix(float(rng.uniform(15, 60))) + rng.uniform(0, 6)) ** 4
    line = np.exp(-0.5 * (across / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    canvas.add_shape(window, line * flicker * canvas.survey.pixel_scale_arcsec, counts(canvas, item))
