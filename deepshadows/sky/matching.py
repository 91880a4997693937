"""Labels detections by the truth, by position on the sky. No Ray, no I/O."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepshadows.outcomes import InputError
from deepshadows.sky.footprints import unit_vectors

LSBG, ARTIFACT, AMBIGUOUS = 1, 0, -1
OWN_RADII = 1.5
"""Further detections within this many half-light radii of an LSBG are its own pieces."""


def label_by_truth(
    ra: NDArray[np.float64], dec: NDArray[np.float64], truth: pa.Table, radius_arcsec: float
) -> NDArray[np.int8]:
    """Label each detection by the LSBGs of a truth table.

    Parameters
    ----------
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    truth : pa.Table
        Columns ra, dec (degrees), label (1 for an LSBG; other rows are passed over) and, where known,
        r_eff_arcsec.
    radius_arcsec : float
        Largest distance of a match.

    Returns
    -------
    int8 (N,)
        1 for the detection nearest to an LSBG within the radius (of equal distances the first), -1 for further
        detections within that radius, or within 1.5 half-light radii, of any LSBG, else 0.

    Raises
    ------
    InputError
        The truth table lacks ra, dec or label.
    """
    if missing := [name for name in ("ra", "dec", "label") if name not in truth.column_names]:
        raise InputError(f"the truth table has no column {', '.join(missing)}")
    labels = np.full(len(ra), ARTIFACT, dtype=np.int8)
    true = truth.filter(pc.equal(truth["label"], LSBG))
    if not len(ra) or not true.num_rows:
        return labels
    points = unit_vectors(ra, dec)
    lsbgs = unit_vectors(true["ra"].to_numpy(), true["dec"].to_numpy())
    radius, reach = chord(np.array(radius_arcsec)), chord(reach_arcsec(true, radius_arcsec))
    for centre, near in zip(lsbgs, cKDTree(points).query_ball_point(lsbgs, reach), strict=True):
        if not near:
            continue
        near = np.sort(near)
        distance = np.linalg.norm(points[near] - centre, axis=1)
        nearest = int(np.argmin(distance))
        labels[near[labels[near] == ARTIFACT]] = AMBIGUOUS
        if distance[nearest] <= radius:
            labels[near[nearest]] = LSBG
    return labels


def match(
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    truth_ra: NDArray[np.float64],
    truth_dec: NDArray[np.float64],
    radius_arcsec: float,
) -> NDArray[np.int64]:
    """Pairs of detections and true objects: each has at most one partner, the closest pair is made first.

    Parameters
    ----------
    ra, dec : float64 (N,)
        Detections, ICRS degrees, finite.
    truth_ra, truth_dec : float64 (M,)
    radius_arcsec : float
        Largest distance of a pair.

    Returns
    -------
    int64 (M,)
        The detection of each true object, -1 where there is none; of equal distances the first in order.
    """
    partner = np.full(len(truth_ra), -1, np.int64)
    if not len(ra) or not len(truth_ra):
        return partner
    true, found = cKDTree(unit_vectors(truth_ra, truth_dec)), cKDTree(unit_vectors(ra, dec))
    reach = float(chord(np.array(radius_arcsec)))
    pairs = true.sparse_distance_matrix(found, reach, output_type="ndarray")
    taken = np.zeros(len(ra), dtype=bool)
    for pair in pairs[np.lexsort((pairs["j"], pairs["i"], pairs["v"]))]:
        if partner[pair["i"]] < 0 and not taken[pair["j"]]:
            partner[pair["i"]], taken[pair["j"]] = pair["j"], True
    return partner


def chord(angle_arcsec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of two points on the unit sphere."""
    return np.asarray(2 * np.sin(np.deg2rad(angle_arcsec / 3600) / 2))


def reach_arcsec(true: pa.Table, radius_arcsec: float) -> NDArray[np.float64]:
    """How far an LSBG claims detections, shape (M,)."""
    if "r_eff_arcsec" not in true.column_names:
        return np.full(true.num_rows, radius_arcsec)
    size = np.nan_to_num(true["r_eff_arcsec"].cast(pa.float64()).to_numpy())
    return np.asarray(np.maximum(OWN_RADII * size, radius_arcsec))
