"""Labels detections by the truth, by position on the sky. No Ray, no I/O."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepshadows.outcomes import InputError
from deepshadows.sky.footprints import unit_vectors
from deepshadows.sky.shards import positions

LSBG, ARTIFACT, AMBIGUOUS, UNMATCHED = 1, 0, -1, -2
OWN_RADII = 1.5
"""Further detections within this many half-light radii of an LSBG are its own pieces."""


def checked_truth(table: pa.Table, where: str) -> pa.Table:
    """A truth table as it is to be used: ra and dec in degrees, label int8: 1 LSBG, 0 not, null not known.

    Raises
    ------
    InputError
        A column is missing, a position is none, or a label is something else.
    """
    if missing := [name for name in ("ra", "dec", "label") if name not in table.column_names]:
        raise InputError(f"{where}: the truth table has no column {', '.join(missing)}; it has {table.column_names}")
    _, _, flags = positions(table, where)
    if bad := int(np.count_nonzero(flags)):
        raise InputError(
            f"{where}: {bad} of {len(flags)} rows have no possible ra and dec; leave them out of the truth"
        )
    label = table["label"]
    try:
        found = pc.unique(label).to_pylist()
        others = [value for value in found if value not in (LSBG, ARTIFACT, None) and value == value]  # NaN is null
        values = np.empty(0) if others else label.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"{where}: column label does not hold 1 (LSBG) and 0: {error}") from error
    if others:
        raise InputError(
            f"{where}: column label does not hold 1 (LSBG), 0 (not an LSBG) and null (not known) alone, but "
            f"{', '.join(map(repr, others[:5]))} too; give every class one of these, or leave its rows out"
        )
    labels = pa.array(values, pa.int8(), from_pandas=True)
    return table.set_column(table.column_names.index("label"), "label", labels)


def label_by_truth(
    ra: NDArray[np.float64], dec: NDArray[np.float64], truth: pa.Table, radius_arcsec: float
) -> NDArray[np.int8]:
    """Label each detection by the LSBGs of a truth table that has all of its area.

    Parameters
    ----------
    ra, dec : float64 (N,)
        ICRS degrees, finite.
    truth : pa.Table
        Columns ra, dec (degrees), label (1 for an LSBG, null for what may be one; other rows are passed over) and,
        where known, r_eff_arcsec.
    radius_arcsec : float
        Largest distance of a match.

    Returns
    -------
    int8 (N,)
        1 for the detection nearest to an LSBG within the radius (of equal distances the first), -1 for further
        detections within that radius, or within 1.5 half-light radii, of any LSBG, or within the radius of a row
        without a label, else 0.

    Raises
    ------
    InputError
        The truth table lacks ra, dec or label.
    """
    if missing := [name for name in ("ra", "dec", "label") if name not in truth.column_names]:
        raise InputError(f"the truth table has no column {', '.join(missing)}")
    labels = np.full(len(ra), ARTIFACT, dtype=np.int8)
    true = truth.filter(pc.equal(truth["label"], LSBG))
    unknown = truth.filter(pc.is_null(truth["label"]))
    if not len(ra) or not true.num_rows + unknown.num_rows:
        return labels
    points = unit_vectors(ra, dec)
    tree = cKDTree(points)
    lsbgs = unit_vectors(true["ra"].to_numpy(), true["dec"].to_numpy())
    radius, reach = chord(np.array(radius_arcsec)), chord(reach_arcsec(true, radius_arcsec))
    for near in tree.query_ball_point(unit_vectors(unknown["ra"].to_numpy(), unknown["dec"].to_numpy()), radius):
        labels[near] = AMBIGUOUS
    for centre, near in zip(lsbgs, tree.query_ball_point(lsbgs, reach), strict=True):
        if not near:
            continue
        near = np.sort(near)
        distance = np.linalg.norm(points[near] - centre, axis=1)
        nearest = int(np.argmin(distance))
        labels[near[labels[near] == ARTIFACT]] = AMBIGUOUS
        if distance[nearest] <= radius:
            labels[near[nearest]] = LSBG
    return labels


def label_by_vetting(
    ra: NDArray[np.float64], dec: NDArray[np.float64], truth: pa.Table, radius_arcsec: float
) -> NDArray[np.int8]:
    """Label the detections that a list of vetted objects names, and no others; parameters as of `label_by_truth`.

    Returns
    -------
    int8 (N,)
        Each row of the truth speaks for the detection nearest to it within the radius, and a detection has the label
        of the nearest row that speaks for it: 1, 0, or -1 for a row without a label and for rows at one distance that
        contradict each other. -2 where no row does.
    """
    labels = np.full(len(ra), UNMATCHED, dtype=np.int8)
    if not len(ra) or not truth.num_rows:
        return labels
    rows = unit_vectors(truth["ra"].to_numpy(), truth["dec"].to_numpy())
    distance, nearest = cKDTree(unit_vectors(ra, dec)).query(rows)
    given = truth["label"].fill_null(AMBIGUOUS).to_numpy()
    matched = distance <= chord(np.array(radius_arcsec))
    least = np.full((3, len(ra)), np.inf)
    for closest, label in zip(least, (ARTIFACT, LSBG, AMBIGUOUS), strict=True):
        np.minimum.at(closest, nearest[matched & (given == label)], distance[matched & (given == label)])
    artifact, lsbg, unknown = least
    labels[np.isfinite(least).any(axis=0)] = AMBIGUOUS
    labels[artifact < np.minimum(lsbg, unknown)] = ARTIFACT
    labels[lsbg < np.minimum(artifact, unknown)] = LSBG
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
