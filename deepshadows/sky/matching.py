"""Labels detections by the truth, by position on the sky. No Ray, no I/O."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepshadows.outcomes import InputError
from deepshadows.sky.tile_index import unit_vectors

LSBG, ARTIFACT, AMBIGUOUS = 1, 0, -1


def label_by_truth(
    ra: NDArray[np.float64], dec: NDArray[np.float64], truth: pa.Table, radius_arcsec: float
) -> NDArray[np.int8]:
    """Label each detection by the LSBGs of a truth table.

    Parameters
    ----------
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    truth : pa.Table
        Columns ra, dec (degrees) and label (1 for an LSBG); other rows are passed over.
    radius_arcsec : float
        Largest distance of a match.

    Returns
    -------
    int8 (N,)
        1 for the detection nearest to an LSBG within the radius (of equal distances the first), -1 for further
        detections within that radius of any LSBG, else 0.
    """
    if missing := [name for name in ("ra", "dec", "label") if name not in truth.column_names]:
        raise InputError(f"the truth table has no column {', '.join(missing)}")
    labels = np.full(len(ra), ARTIFACT, dtype=np.int8)
    true = truth.filter(pc.equal(truth["label"], LSBG))
    if not len(ra) or not true.num_rows:
        return labels
    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)
    points = unit_vectors(ra, dec)
    lsbgs = unit_vectors(true["ra"].to_numpy(), true["dec"].to_numpy())
    for centre, near in zip(lsbgs, cKDTree(points).query_ball_point(lsbgs, chord), strict=True):
        if not near:
            continue
        near = np.sort(near)
        nearest = near[np.argmin(np.sum((points[near] - centre) ** 2, axis=1))]
        labels[near[labels[near] == ARTIFACT]] = AMBIGUOUS
        labels[nearest] = LSBG
    return labels
