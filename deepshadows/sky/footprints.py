"""Where tiles lie on the sky, and in which of them a position lies deepest. No Ray, no torch.

Candidates come from a tree of the tiles' centres on the unit sphere, so neither ra = 0 nor a pole is special; the
tile's own WCS decides. A gnomonic WCS without distortion, as coadds have, is one 3x3 matrix from unit vectors to
homogeneous pixels, applied to many tiles at once; any other goes through astropy, a tile at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepshadows.sky.tiles import BandSource, celestial_wcs, pixel_scale_arcsec

_BLOCK_ROWS = 250_000
"""Positions looked up at once: some 100 MB."""
_NEIGHBOURS = 4
_EDGE_POINTS = 9
_MARGIN = 1.001
_NOT_PLAIN = re.compile(r"^(PV|PS|A_|B_|AP_|BP_|CROTA|CTYPE3|CPDIS|CQDIS|D2IM|DP\d|DQ\d)")
_RAD_ARCSEC = 3600 * 180 / np.pi


@dataclass(frozen=True, slots=True)
class Footprint:
    """One tile on the sky.

    Attributes
    ----------
    centre : float64 (3,)
        Unit vector.
    radius_rad : float
        Of the circle around the tile's edge.
    matrix : float64 (3, 3), or None
        Unit vector to (x w, y w, w), x and y in pixels from 0 at the centre of the first; w > 0 on the tile's side of
        the sphere. None where the WCS is not plain gnomonic.
    """

    centre: NDArray[np.float64]
    radius_rad: float
    pixel_scale_arcsec: float
    matrix: NDArray[np.float64] | None


def unit_vectors(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points on the unit sphere, float64 (N, 3); ra and dec in degrees."""
    ra_rad, dec_rad = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec_rad) * np.cos(ra_rad), np.cos(dec_rad) * np.sin(ra_rad), np.sin(dec_rad)], axis=-1)


def footprint(source: BandSource) -> Footprint:
    """Where the image of a band lies."""
    header = fits.Header.fromstring(source.wcs_header)
    height, width = source.shape
    edge_x, edge_y = _outline(width, height)
    try:
        plain = _gnomonic(header)
    except (
        ValueError,
        TypeError,
        np.linalg.LinAlgError,
    ):  # cards that are no numbers: astropy knows what to make of them
        plain = None
    if plain is not None:
        matrix, scale_arcsec = plain
        homogeneous = np.stack([edge_x, edge_y, np.ones_like(edge_x)])
        points = np.linalg.solve(matrix, homogeneous).T
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    else:
        matrix = None
        wcs = celestial_wcs(header, source.url)
        scale_arcsec = pixel_scale_arcsec(wcs)
        points = unit_vectors(*wcs.all_pix2world(edge_x, edge_y, 0))
    chord = float(np.linalg.norm(points[1:] - points[0], axis=1).max())
    radius_rad = 2 * np.arcsin(min(chord / 2, 1.0)) * _MARGIN
    return Footprint(points[0], float(radius_rad), scale_arcsec, matrix)


def _outline(width: int, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel coordinates of the centre, then of points around the edge, from corner to corner."""
    step = np.linspace(0, 1, _EDGE_POINTS)
    zero, one = np.zeros(_EDGE_POINTS), np.ones(_EDGE_POINTS)
    x, y = np.concatenate([[0.5], step, step, zero, one]), np.concatenate([[0.5], zero, one, step, step])
    return x * width - 0.5, y * height - 0.5


def _gnomonic(header: fits.Header) -> tuple[NDArray[np.float64], float] | None:
    """The matrix of `Footprint` and the pixel scale in arcsec; None where the WCS is not plain gnomonic.

    Calabretta & Greisen 2002, section 5.1.3: the standard coordinates are ratios of the position's components along
    east, north and the reference point.
    """
    names = set(header)
    types = str(header.get("CTYPE1", "")), str(header.get("CTYPE2", ""))
    if types != ("RA---TAN", "DEC--TAN") or any(_NOT_PLAIN.match(name) for name in names):
        return None
    degrees = all(str(header.get(f"CUNIT{axis}", "deg")).strip() == "deg" for axis in (1, 2))
    ra_deg, dec_deg = float(header.get("CRVAL1", 0)), float(header.get("CRVAL2", 0))
    if not degrees or float(header.get("LONPOLE", 180)) != 180 or abs(dec_deg) >= 90:
        return None
    given, unit = ("CD", np.zeros((2, 2))) if names & {"CD1_1", "CD1_2", "CD2_1", "CD2_2"} else ("PC", np.eye(2))
    linear = np.array([[float(header.get(f"{given}{i}_{j}", unit[i - 1, j - 1])) for j in (1, 2)] for i in (1, 2)])
    if given == "PC":
        linear *= [[float(header.get("CDELT1", 1))], [float(header.get("CDELT2", 1))]]
    ra, dec = np.radians([ra_deg, dec_deg])
    east = np.array([-np.sin(ra), np.cos(ra), 0])
    north = np.array([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)])
    ahead = np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    pixels = np.linalg.solve(np.radians(linear), np.stack([east, north]))
    reference = np.array([[float(header.get("CRPIX1", 0)) - 1], [float(header.get("CRPIX2", 0)) - 1]])
    scales = np.sqrt((linear**2).sum(axis=0)) * 3600
    return np.vstack([pixels + reference * ahead, ahead]), float(np.sqrt(scales[0] * scales[1]))


@lru_cache(maxsize=4096)
def _other_wcs(wcs_header: str) -> WCS:
    return celestial_wcs(fits.Header.fromstring(wcs_header), "tile index")


class Footprints:
    """The footprints of many tiles, ready to be asked for owners.

    Parameters
    ----------
    sources : sequence of BandSource
        Of each tile the band that places detections.
    """

    def __init__(self, sources: Sequence[BandSource]) -> None:
        self._sources = sources
        prints = [footprint(source) for source in sources]
        unknown = np.full((3, 3), np.nan)
        self._matrices = np.array([unknown if at.matrix is None else at.matrix for at in prints]).reshape(-1, 3, 3)
        self._plain = np.array([at.matrix is not None for at in prints], dtype=bool)
        self._scales_arcsec = np.array([at.pixel_scale_arcsec for at in prints])
        self._sizes_pix = np.array([source.shape for source in sources], dtype=np.float64).reshape(-1, 2)
        centres = np.array([at.centre for at in prints]).reshape(-1, 3)
        radii_rad = np.array([at.radius_rad for at in prints])
        self._trees = []
        sizes = np.floor(np.log2(radii_rad)) if len(prints) else radii_rad
        for size in np.unique(sizes):  # tiles of like size together: a few large ones make no small ones candidates
            members = np.flatnonzero(sizes == size)
            chord = 2 * np.sin(min(radii_rad[members].max(), np.pi) / 2)
            self._trees.append((members, cKDTree(centres[members]), chord))

    def owners(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The tile in which each position lies deepest inside.

        Parameters
        ----------
        ra, dec : float64 (N,)
            ICRS degrees, finite.

        Returns
        -------
        owner : int32 (N,)
            Index into the tiles, -1 where none holds the position; of equal depths the first tile wins.
        depth : float64 (N,)
            Distance to the nearest tile edge in arcsec, -inf off every tile.
        """
        owner = np.full(len(ra), -1, dtype=np.int32)
        depth = np.full(len(ra), -np.inf)
        for start in range(0, len(ra), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            points = unit_vectors(ra[block], dec[block])
            for rows, tiles in self._candidates(points):
                inside = self._depth_arcsec(points[rows], ra[block][rows], dec[block][rows], tiles)
                best, at = depth[block][rows], owner[block][rows]
                better = (inside > best) | ((inside == best) & (inside > 0) & (tiles < at))
                owner[start + rows[better]], depth[start + rows[better]] = tiles[better], inside[better]
        return owner, depth

    def _candidates(self, points: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Positions and a tile each that may hold them; together every such pair, no position twice in one."""
        for members, tree, chord in self._trees:
            rows, known = np.arange(len(points)), 0
            while len(rows) and known < len(members):
                wanted = np.arange(known, min(max(_NEIGHBOURS, 4 * known), len(members))) + 1
                distance, near = tree.query(points[rows], k=wanted, distance_upper_bound=chord, workers=-1)
                for column in range(len(wanted)):
                    found = np.isfinite(distance[:, column])
                    yield rows[found], members[near[found, column]]
                rows, known = rows[np.isfinite(distance[:, -1])], int(wanted[-1])

    def _depth_arcsec(
        self,
        points: NDArray[np.float64],
        ra: NDArray[np.float64],
        dec: NDArray[np.float64],
        tiles: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Distance of each position to the nearest edge of its tile, -inf outside."""
        x_w, y_w, w = np.einsum("nij,nj->in", self._matrices[tiles], points)
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = np.where(w > 0, x_w / w, np.nan), np.where(w > 0, y_w / w, np.nan)
        other = np.flatnonzero(~self._plain[tiles])
        for tile in np.unique(tiles[other]):
            rows = other[tiles[other] == tile]
            x[rows], y[rows] = _other_wcs(self._sources[tile].wcs_header).all_world2pix(
                ra[rows], dec[rows], 0, quiet=True, adaptive=True
            )
        height, width = self._sizes_pix[tiles].T
        inside_pix = np.minimum.reduce([x + 0.5, width - 0.5 - x, y + 0.5, height - 0.5 - y])
        return np.asarray(np.where(inside_pix > 0, inside_pix, -np.inf) * self._scales_arcsec[tiles])
