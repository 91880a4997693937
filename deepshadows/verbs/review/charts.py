"""Pictures of totals: the sky, the scores, how pure and complete. matplotlib; no Ray, no torch, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import healpix_to_lonlat, lonlat_to_healpix, vertices
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from deepshadows.model.completeness import INTERVAL_SHORT, Bin, Property
from deepshadows.model.metrics import Judged, Ranked
from deepshadows.sky.footprints import unit_vectors
from deepshadows.verbs.page import Picture
from deepshadows.verbs.pictures import png
from deepshadows.verbs.review.tally import BINS, SkyCounts

BLUE, ORANGE, GREY = "#2a5fa5", "#c2570c", "#7a7a7a"
NAMES = ("detections", "candidates")
"""The columns of `SkyCounts.counts`."""
LOCATOR_ORDER, WHOLE_ORDER = 5, 7
"""Pixels of 1.8 degrees, so that a small survey can be seen on a map of the whole sky; of 27 arcmin for a large one."""
ZOOM_DEG = 25.0
"""A survey that is smaller than this across has a map of its own."""
MOST_PIXELS = 60_000
FEWEST_ROWS_A_PIXEL = 4
MOST_POINTS = 2_000
"""Of a curve."""
_MARGIN = 1.08
_PANEL = (4.9, 3.5)
"""Width and height in inches of one of two pictures side by side."""


def sky_maps(sky: SkyCounts) -> list[Picture]:
    """Objects a square degree: the whole sky in Mollweide's projection, and a small survey alone, pixel by pixel.

    Parameters
    ----------
    sky : SkyCounts
        Empty counts give no picture.
    """
    if not len(sky.pixels):
        return []
    ra, dec, radius_deg = extent(sky)
    where = f"centre ra {ra:.2f}, dec {dec:.2f} deg, radius {radius_deg:.2g} deg"
    if 2 * radius_deg > ZOOM_DEG:
        counts = _readable(sky.coarsened(WHOLE_ORDER))
        return [_whole_sky(counts, place, where) for place in range(2)]
    around = _whole_sky(sky.coarsened(LOCATOR_ORDER), 0, where, marked=(ra, dec))
    counts = _readable(sky)
    return [around, *(_alone(counts, place, ra, dec) for place in range(2))]


def _whole_sky(counts: SkyCounts, place: int, where: str, marked: tuple[float, float] | None = None) -> Picture:
    """The value of the HEALPix pixel under each cell of a fine grid; `marked` is circled."""
    lon_edge, lat_edge = np.linspace(-180, 180, 721), np.linspace(-90, 90, 361)
    lon, lat = np.meshgrid((lon_edge[1:] + lon_edge[:-1]) / 2, (lat_edge[1:] + lat_edge[:-1]) / 2)
    pixel = lonlat_to_healpix(
        Longitude(-lon.ravel() % 360, unit="deg"), Latitude(lat.ravel(), unit="deg"), counts.order, num_threads=1
    ).astype(np.int64)
    at = np.minimum(np.searchsorted(counts.pixels, pixel), len(counts.pixels) - 1)
    value = np.where(counts.pixels[at] == pixel, counts.counts[at, place], 0).reshape(lon.shape)
    density = np.ma.masked_less_equal(value / pixel_area_deg2(counts.order), 0)
    figure = Figure(figsize=_PANEL, layout="constrained")
    axis = figure.add_subplot(projection="mollweide")
    axis.grid(True, color="#d5d8dd", linewidth=0.5)
    if density.count():
        edges = np.radians(lon_edge), np.radians(lat_edge)
        drawn = axis.pcolormesh(*edges, density, norm=_norm(density), rasterized=True)
        _bar(figure, axis, drawn)
    if marked is not None:
        spot = -np.radians((marked[0] + 180) % 360 - 180), np.radians(marked[1])
        axis.plot(*spot, "o", ms=16, mfc="none", mec=ORANGE, mew=1.8)
    axis.set_title(f"{NAMES[place]}, whole sky", fontsize=10)
    axis.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["120°", "60°", "0°", "300°", "240°"])
    axis.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"])
    axis.tick_params(labelsize=7.5, colors="#50555c")
    circled = " The circle marks the survey." if marked else ""
    return Picture(
        name=f"sky_{NAMES[place]}",
        alt=f"Map of the whole sky in Mollweide's projection: {NAMES[place]} a square degree; {where}.",
        caption=f"HEALPix order {counts.order}, ICRS, ra grows to the left; {where}.{circled}",
        png=png(figure),
    )


def _norm(density: Any) -> Normalize:
    """Logarithmic where values differ by more than a factor of 30."""
    low, high = float(density.min()), float(density.max())
    return LogNorm(low, high) if high > 30 * low else Normalize(0, high)


def _bar(figure: Figure, axis: Axes, drawn: ScalarMappable) -> None:
    bar = figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.75, pad=0.04, aspect=30)
    bar.ax.tick_params(labelsize=7.5)
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    bar.ax.xaxis.set_minor_formatter(NullFormatter())
    bar.set_label("objects per square degree", fontsize=8)


def _alone(counts: SkyCounts, place: int, ra: float, dec: float) -> Picture:
    """The survey on the tangent plane, each HEALPix pixel as it is."""
    outline: Any = np.stack([_flat(corner, ra, dec) for corner in _corners(counts)], axis=0)
    half = np.abs(outline).max() * _MARGIN
    density = counts.counts[:, place] / pixel_area_deg2(counts.order)
    filled = density > 0
    figure = Figure(figsize=(_PANEL[0], 5.0), layout="constrained")
    axis = figure.subplots()
    axis.add_collection(PolyCollection(outline[~filled], facecolor="#dfe2e6", edgecolor="none"))
    if filled.any():
        cells = PolyCollection(
            outline[filled], array=density[filled], norm=_norm(density[filled]), edgecolor="face", lw=0.2
        )
        axis.add_collection(cells)
        _bar(figure, axis, cells)
    axis.set(xlim=(half, -half), ylim=(-half, half), aspect="equal")
    axis.set_title(NAMES[place], fontsize=10)
    axis.set_xlabel(f"(ra − {ra:.3f}°) cos dec, degrees", fontsize=8)
    axis.set_ylabel(f"dec − ({dec:.3f}°), degrees", fontsize=8)
    axis.tick_params(labelsize=7.5)
    side = np.sqrt(pixel_area_deg2(counts.order)) * 60
    grey = "; grey: detections and no candidate" if place else ""
    return Picture(
        name=f"zoom_{NAMES[place]}",
        alt=f"{NAMES[place].capitalize()} a square degree around ra {ra:.3f}, dec {dec:.3f}, in "
        f"{np.count_nonzero(filled):,} HEALPix pixels of {side:.2g} arcmin.",
        caption=f"The survey alone, HEALPix order {counts.order} ({side:.2g} arcmin), north up, east left{grey}.",
        png=png(figure),
    )


def _readable(sky: SkyCounts) -> SkyCounts:
    """Coarse enough that a pixel holds several rows, and that pixels can be told apart."""
    counts = sky
    while counts.order > 3 and (
        len(counts.pixels) > MOST_PIXELS or counts.counts[:, 0].sum() < FEWEST_ROWS_A_PIXEL * len(counts.pixels)
    ):
        counts = counts.coarsened(counts.order - 1)
    return counts


def extent(sky: SkyCounts) -> tuple[float, float, float]:
    """Centre (ra, dec) of the occupied pixels and the radius that holds their centres, degrees."""
    lon, lat = healpix_to_lonlat(sky.pixels.astype(np.uint64), sky.order, num_threads=1)
    points = unit_vectors(lon.to_value(u.deg), lat.to_value(u.deg))
    mean = points.mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-6:  # spread evenly over the sphere: no side is the middle
        return 0.0, 0.0, 180.0
    middle = mean / length
    ra, dec = np.degrees(np.arctan2(middle[1], middle[0])) % 360, np.degrees(np.arcsin(middle[2]))
    return float(ra), float(dec), float(np.degrees(np.arccos(np.clip(points @ middle, -1, 1).min())))


def _corners(counts: SkyCounts) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """ra and dec of the four corners of each pixel, degrees."""
    lon, lat = vertices(counts.pixels.astype(np.uint64), counts.order, num_threads=1)
    return list(zip(lon.to_value(u.deg), lat.to_value(u.deg), strict=True))


def _flat(corners: tuple[NDArray[np.float64], NDArray[np.float64]], ra: float, dec: float) -> NDArray[np.float64]:
    """Offsets on the tangent plane in degrees, east positive, shape (4, 2)."""
    lon, lat = np.radians(corners[0] - ra), np.radians(corners[1])
    at = np.radians(dec)
    depth = np.sin(at) * np.sin(lat) + np.cos(at) * np.cos(lat) * np.cos(lon)
    east = np.cos(lat) * np.sin(lon) / depth
    north = (np.cos(at) * np.sin(lat) - np.sin(at) * np.cos(lat) * np.cos(lon)) / depth
    return np.asarray(np.degrees(np.stack([east, north], axis=-1)))


def sky_facts(sky: SkyCounts) -> dict[str, str]:
    """Where the rows lie, and how dense."""
    if not len(sky.pixels):
        return {}
    ra, dec, radius_deg = extent(sky)
    rows, selected = (int(total) for total in sky.counts.sum(axis=0))
    counts = _readable(sky)
    area = len(counts.pixels) * pixel_area_deg2(counts.order)
    return {
        "centre": f"ra {ra:.3f}, dec {dec:+.3f} deg",
        "radius": f"{radius_deg:.3g} deg",
        "area with detections": f"{area:,.4g} deg², HEALPix pixels of order {counts.order}",
        "detections": f"{rows:,}, {rows / area:,.4g} a square degree",
        "candidates": f"{selected:,}, {selected / area:,.4g} a square degree",
    }


def pixel_area_deg2(order: int) -> float:
    return float(4 * np.pi * np.degrees(1) ** 2 / (12 * 4**order))


def scores(histogram: NDArray[np.int64], threshold: float) -> Picture:
    """Rows by p_lsbg, with the threshold."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axis = figure.subplots()
    edges = np.linspace(0, 1, BINS + 1)
    colours = [BLUE if edge >= threshold - 1e-9 else "#9aa3b0" for edge in edges[:-1]]
    axis.bar(edges[:-1], histogram, width=1 / BINS, align="edge", color=colours)
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axis.text(
        threshold, 1.02, f"threshold {threshold:g}", transform=axis.get_xaxis_transform(), ha="center", fontsize=9
    )
    axis.set(xlim=(0, 1), xlabel="p_lsbg: calibrated probability at a prevalence of 0.5", ylabel="objects")
    if histogram.max(initial=0) > 0:
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.7)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    _plain(axis)
    total, tenth = int(histogram.sum()), BINS // 10
    low, high = (int(part.sum()) / (total or 1) for part in (histogram[:tenth], histogram[-tenth:]))
    return Picture(
        name="scores",
        alt=f"Histogram of p_lsbg of {total:,} scored objects: {low:.1%} below 0.1, {high:.1%} above 0.9.",
        caption=f"Scores of {total:,} objects, counts on a logarithmic axis; blue bars lie above the threshold.",
        png=png(figure),
    )


def shifts(edges: Sequence[float], counts: Sequence[int]) -> Picture:
    """How far p_lsbg of the same objects has moved since the version before."""
    figure = Figure(figsize=_PANEL, layout="constrained")
    axis = figure.subplots()
    axis.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE)
    axis.set(xlabel="p_lsbg now − p_lsbg before", ylabel="objects", xlim=(edges[0], edges[-1]))
    if max(counts, default=0) > 0:
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.7)
    _plain(axis)
    half = len(counts) // 2
    return Picture(
        name="shifts",
        alt=f"Histogram of the change of p_lsbg: {sum(counts[:half]):,} objects fell, {sum(counts[half:]):,} rose.",
        caption="Objects whose score has changed since the version before, on a logarithmic axis.",
        png=png(figure),
    )


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def curve(rows: Judged, prevalence: float | None) -> tuple[NDArray[np.float64], ...]:
    """Threshold, completeness and purity at every distinct score, from the highest; each (G,).

    With a prevalence, LSBGs and artifacts weigh as in a survey with this share of LSBGs among its detections.
    """
    ranked = Ranked(rows)
    positive, negative = (part[0, ::-1].cumsum() for part in ranked.in_groups(np.ones((1, len(rows.labels)))))
    artifacts, lsbgs, detected = rows.classes.sum(axis=0)
    completeness = positive / lsbgs
    weights = (
        (1.0, 1.0) if prevalence is None else (prevalence / max(1, detected), (1 - prevalence) / max(1, artifacts))
    )
    true, false = weights[0] * positive, weights[1] * negative
    return rows.probabilities[ranked.order][ranked.group_starts][::-1], completeness, true / (true + false)


def _drawn(completeness: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places of a curve that are drawn: all, or those at MOST_POINTS even steps of completeness, and the last."""
    last = len(completeness) - 1
    if last < MOST_POINTS:
        return np.arange(last + 1)
    steps = np.searchsorted(completeness, np.linspace(0, completeness[-1], MOST_POINTS))
    return np.unique([*steps.clip(0, last), last])


def purity_completeness(rows: Judged, prevalence: float | None, threshold: float) -> Picture | None:
    """Purity against completeness for every threshold; None where no row has a score."""
    if not np.isfinite(rows.probabilities).any():
        return None
    figure = Figure(figsize=(_PANEL[0], 4.0), layout="constrained")
    axis = figure.subplots()
    share = float(np.mean(rows.labels == 1))
    wanted: list[tuple[float | None, str, str]] = [(None, BLUE, f"as matched ({share:.1%} LSBGs)")]
    if prevalence is not None:
        wanted.append((prevalence, ORANGE, f"at a prevalence of {prevalence:g}"))
    told = []
    for of, colour, name in wanted:
        levels, completeness, purity = curve(rows, of)
        drawn = _drawn(completeness)
        axis.plot(completeness[drawn], purity[drawn], color=colour, label=name)
        if (kept := np.flatnonzero(levels >= threshold)).size:
            axis.plot(completeness[kept[-1]], purity[kept[-1]], "o", color=colour)
            told.append(f"{name}: completeness {completeness[kept[-1]]:.3f}, purity {purity[kept[-1]]:.3f}")
    axis.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="completeness of the LSBGs of the truth", ylabel="purity")
    axis.legend(frameon=False, loc="lower left")
    axis.grid(True, color="#e3e6ea", linewidth=0.6)
    _plain(axis)
    return Picture(
        name="purity",
        alt=f"Purity against completeness. At p_lsbg >= {threshold:g}: {'; '.join(told) or 'nothing is selected'}.",
        caption=f"Purity and completeness of selections at every threshold; dots mark p_lsbg ≥ {threshold:g}. LSBGs "
        "that were never detected count as lost, so completeness ends below 1.",
        png=png(figure),
    )


def completeness(tables: Mapping[Property, Sequence[Bin]], threshold: float) -> Picture | None:
    """Completeness by each property with its intervals; None without tables."""
    if not tables:
        return None
    figure = Figure(figsize=(0.6 + 4.3 * len(tables), 3.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tables), sharey=True))
    told = []
    for axis, (by, bins) in zip(axes, tables.items(), strict=True):
        records = [one.record() for one in bins]
        middle = [(one.low + one.high) / 2 if by.step else np.sqrt(one.low * one.high) for one in bins]
        for name, colour, label in (
            ("detected_share", GREY, "detected"),
            ("completeness", BLUE, f"p_lsbg ≥ {threshold:g}"),
        ):
            value = np.array([record[name] for record in records])
            spread = np.array([[record[f"{name}_lo"], record[f"{name}_hi"]] for record in records]).T
            axis.errorbar(
                middle, value, np.abs(spread - value), fmt="o-", ms=4, lw=1.2, capsize=2, color=colour, label=label
            )
        for at, one in zip(middle, bins, strict=True):
            axis.annotate(f"{one.n}", (at, 1.03), ha="center", fontsize=6.5, color="#50555c", annotation_clip=False)
        if by.step is None:
            axis.set_xscale("log", base=2)
            axis.set_xticks([one.low for one in bins] + [bins[-1].high])
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axis.set(xlabel=f"{by.name} ({by.unit})", ylim=(-0.02, 1.1))
        axis.xaxis.label.set_size(8)
        axis.tick_params(labelsize=7)
        axis.grid(True, color="#e3e6ea", linewidth=0.6)
        _plain(axis)
        values = ", ".join(f"{one.selected}/{one.n} at {one.low:.3g}-{one.high:.3g}" for one in bins)
        told.append(f"{by.name}: {values}")
    axes[0].set_ylabel("share of true LSBGs")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return Picture(
        name="completeness",
        alt=f"Completeness at p_lsbg >= {threshold:g} by {'; by '.join(told)}.",
        caption="Share of the true LSBGs that are detected, and that are selected; numbers: LSBGs in each bin; "
        f"bars: {INTERVAL_SHORT}.",
        png=png(figure),
    )
