"""Rows of a catalogue or run against a truth table, matched on the sky. No Ray, no torch.

What is judged is the area that both cover: HEALPix pixels of 14 arcmin that hold objects of the truth, and those that
touch them; likewise for the rows. Elsewhere a row is no artifact and an LSBG is not lost: nobody has looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepshadows import storage
from deepshadows.catalog.healpix import INDEX_ORDER, spatial_index, with_neighbours
from deepshadows.catalog.score_objects import placed_index
from deepshadows.model.completeness import INTERVAL_TEXT, PROPERTIES, Bin, Property, in_bins
from deepshadows.model.metrics import Judged
from deepshadows.outcomes import InputError
from deepshadows.schema import Flag
from deepshadows.sky.detections import read_table
from deepshadows.sky.footprints import unit_vectors
from deepshadows.sky.matching import ARTIFACT, LSBG, checked_truth, chord, match, reach_arcsec
from deepshadows.verbs.judgement import Subject

AREA_ORDER = 8
COLUMNS = ["ra", "dec", "p_lsbg", "p_lsbg_err", "flags"]
"""What is needed of the rows."""
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Truth:
    """The LSBGs of a truth table, and the pixels of AREA_ORDER that the table covers, sorted."""

    url: str
    lsbgs: pa.Table
    area: NDArray[np.int64]

    @cached_property
    def ra(self) -> NDArray[np.float64]:
        return np.asarray(self.lsbgs["ra"].to_numpy())

    @cached_property
    def dec(self) -> NDArray[np.float64]:
        return np.asarray(self.lsbgs["dec"].to_numpy())


def read_truth(url: str) -> Truth:
    """Read and check a truth table: ra, dec (float64 degrees) and label (1 for an LSBG, 0 or null) of every object.

    Raises
    ------
    InputError
        A column is missing, a position is none, a label is another, or no row has label 1.
    """
    table = checked_truth(read_table(storage.normalise(url)), url)
    label = table["label"].fill_null(ARTIFACT).to_numpy()
    if not (label == LSBG).any():
        raise InputError(f"{url}: no row has label 1, so there is no LSBG to find")
    index = spatial_index(table["ra"].to_numpy(), table["dec"].to_numpy())
    area = with_neighbours(np.unique(_pixel(index)), AREA_ORDER)
    return Truth(url, table.filter(pa.array(label == LSBG)), area)


def true_rows(
    ra: NDArray[np.float64], dec: NDArray[np.float64], truth: Truth, radius_arcsec: float
) -> NDArray[np.bool_]:
    """Whether each position is the match of an LSBG, shape (N,)."""
    found = np.zeros(len(ra), dtype=bool)
    partner = match(ra, dec, truth.ra, truth.dec, radius_arcsec)
    found[partner[partner >= 0]] = True
    return found


def _pixel(index: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(index >> 2 * (INDEX_ORDER - AREA_ORDER))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Rows and LSBGs of the area that rows and truth share.

    Attributes
    ----------
    rows : Judged
        The rows with their labels, and one without a probability for each LSBG that no row was matched to; further
        detections of the same LSBGs are passed over.
    errors : float64 (N,)
        p_lsbg_err of `rows`, NaN where there is none.
    out_of_domain, passed_over, rows_outside : int
        Rows with that flag; passed over; outside the truth's area or without a place on the sky.
    lsbgs : pa.Table (M,)
        The LSBGs of the truth within the rows' area.
    p_lsbg : float64 (M,)
        That of the row matched to each, NaN where there is none or it has no score.
    detected : bool (M,)
        Whether a row was matched.
    lsbgs_outside : int
        LSBGs of the truth where there are no rows.
    """

    rows: Judged
    errors: NDArray[np.float64]
    out_of_domain: int
    passed_over: int
    rows_outside: int
    lsbgs: pa.Table
    p_lsbg: NDArray[np.float64]
    detected: NDArray[np.bool_]
    lsbgs_outside: int

    def tables(self, threshold: float) -> dict[Property, list[Bin]]:
        """Completeness by each property that the truth has, and nothing of the others."""
        found = {by: self._bins(by, threshold) for by in PROPERTIES if by.column in self.lsbgs.column_names}
        return {by: bins for by, bins in found.items() if bins}

    def _bins(self, by: Property, threshold: float) -> list[Bin]:
        try:
            values = np.asarray(self.lsbgs[by.column].cast(pa.float64()).fill_null(np.nan).to_numpy())
        except pa.ArrowException as error:
            raise InputError(f"the truth's column {by.column} does not hold numbers: {error}") from error
        return in_bins(values, self.detected, np.nan_to_num(self.p_lsbg, nan=-1.0) >= threshold, by)

    def lines(self, threshold: float) -> list[str]:
        """The tables, to be read; and which there are not, and why."""
        tables, lines = self.tables(threshold), []
        for by in PROPERTIES:
            if by not in tables:
                lines.append(f"no completeness by {by.name}: the truth has no values in a column {by.column}")
                continue
            lines.append(f"completeness by {by.name} ({by.unit}); {INTERVAL_TEXT}:")
            lines += [
                f"{one['low']:>8.3g} to {one['high']:<6.3g} {one['n']:>6} true {one['detected']:>6} detected "
                f"{one['selected']:>6} selected  {one['completeness']:.3f} ({one['completeness_lo']:.3f} to "
                f"{one['completeness_hi']:.3f})"
                for one in map(Bin.record, tables[by])
            ]
            if unknown := self.lsbgs.num_rows - sum(one.n for one in tables[by]):
                lines.append(f"{unknown} LSBGs have no {by.column}")
        return lines


def subject_of(compared: Compared, radius_arcsec: float) -> Subject:
    """What `judgement` judges."""
    found = int(np.count_nonzero(compared.detected))
    total = len(compared.detected)
    rows = len(compared.rows.labels) - (total - found) + compared.passed_over
    text = [
        f"{rows} rows near the truth; {found} of {total} true LSBGs have a detection within "
        f"{radius_arcsec:g} arcsec, the other {total - found} count as lost"
    ]
    if compared.passed_over:
        text.append(f"further detections of the same LSBGs, passed over: {compared.passed_over}")
    if compared.rows_outside:
        text.append(f"{compared.rows_outside} rows that were read lie where the truth has no objects: not judged")
    if compared.lsbgs_outside:
        text.append(f"{compared.lsbgs_outside} LSBGs of the truth lie where there are no rows: not judged")
    return Subject(
        rows=compared.rows,
        errors=compared.errors,
        out_of_domain=compared.out_of_domain,
        threshold=DEFAULT_THRESHOLD,
        prevalence=0.5,
        figures={
            "rows": rows,
            "rows_unscored": int(np.count_nonzero(np.isnan(compared.rows.probabilities))) - (total - found),
            "truth_lsbg": total,
            "truth_lsbg_detected": found,
            "rows_passed_over": compared.passed_over,
            "rows_outside": compared.rows_outside,
            "truth_lsbg_outside": compared.lsbgs_outside,
        },
        text=tuple(text),
        binomial=True,
    )


class Comparison:
    """Takes the rows part by part. Of a row far from any LSBG only its score is kept: 8 bytes."""

    def __init__(self, truth: Truth, radius_arcsec: float) -> None:
        self._truth, self._radius_arcsec = truth, radius_arcsec
        self._reach = chord(reach_arcsec(truth.lsbgs, radius_arcsec))
        self._tree = cKDTree(unit_vectors(truth.ra, truth.dec))
        self._covered = np.empty(0, np.int64)
        self._near: list[pa.Table] = []
        self._far: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._out_of_domain = self._outside = 0

    def add(self, table: pa.Table) -> None:
        """Take rows with at least the columns COLUMNS; those that repeat an object of their unit are no rows of it."""
        table = table.filter(pa.array((table["flags"].to_numpy() & Flag.DUPLICATE_ID.bit) == 0))
        placed, index = placed_index(table)
        inside = np.isin(_pixel(index), self._truth.area)
        self._covered = np.union1d(self._covered, _pixel(index[inside]))
        rows = table.select(COLUMNS).take(pa.array(np.flatnonzero(placed)[inside]))
        self._outside += table.num_rows - rows.num_rows
        self._out_of_domain += int(np.count_nonzero(rows["flags"].to_numpy() & Flag.OUT_OF_DOMAIN.bit))
        points = unit_vectors(rows["ra"].to_numpy(), rows["dec"].to_numpy())
        distance, _ = self._tree.query(points, distance_upper_bound=np.nextafter(self._reach.max(), np.inf))
        near = np.isfinite(distance)
        self._near.append(rows.filter(pa.array(near)))
        far = rows.filter(pa.array(~near))
        self._far.append((_floats(far, "p_lsbg"), _floats(far, "p_lsbg_err")))

    def compare(self) -> Compared:
        """What came of it.

        Raises
        ------
        InputError
            No LSBG of the truth lies where there are rows.
        """
        truth = self._truth
        around = with_neighbours(self._covered, AREA_ORDER)
        inside = np.isin(_pixel(spatial_index(truth.ra, truth.dec)), around)
        if not inside.any():
            raise InputError(
                f"{truth.url}: no LSBG of the truth lies where the catalogue has rows: the two do not overlap on the "
                "sky; check that both are ICRS degrees and of the same survey"
            )
        rows = pa.concat_tables(self._near)
        ra, dec = (np.asarray(rows[name].to_numpy()) for name in ("ra", "dec"))
        partner = match(ra, dec, truth.ra[inside], truth.dec[inside], self._radius_arcsec)
        detected = partner >= 0
        is_lsbg = np.zeros(len(ra), dtype=bool)
        is_lsbg[partner[detected]] = True
        piece = self._claimed(ra, dec) & ~is_lsbg
        p, errors = _floats(rows, "p_lsbg"), _floats(rows, "p_lsbg_err")
        lost = int(np.count_nonzero(~detected))
        unknown = np.full(lost, np.nan, np.float32)
        far_p, far_errors = (np.concatenate(parts) for parts in zip(*self._far, strict=True))
        labels = [is_lsbg[~piece], np.zeros(len(far_p), bool), np.ones(lost, bool)]
        found = np.full(len(partner), np.nan)
        found[detected] = p[partner[detected]]
        return Compared(
            rows=Judged(
                probabilities=np.concatenate([p[~piece], far_p, unknown]).astype(np.float64),
                labels=np.concatenate(labels).astype(np.int8),
                undetected=np.repeat([False, False, True], [len(part) for part in labels]),
            ),
            errors=np.concatenate([errors[~piece], far_errors, unknown]).astype(np.float64),
            out_of_domain=self._out_of_domain,
            passed_over=int(np.count_nonzero(piece)),
            rows_outside=self._outside,
            lsbgs=truth.lsbgs.filter(pa.array(inside)),
            p_lsbg=found,
            detected=detected,
            lsbgs_outside=int(np.count_nonzero(~inside)),
        )

    def _claimed(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Rows within the reach of an LSBG, each with its own: 1.5 half-light radii, or the match radius."""
        claimed = np.zeros(len(ra), dtype=bool)
        if len(ra):
            centres = unit_vectors(self._truth.ra, self._truth.dec)
            for near in cKDTree(unit_vectors(ra, dec)).query_ball_point(centres, self._reach):
                claimed[near] = True
        return claimed


def _floats(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Nulls as NaN."""
    return np.asarray(table[name].fill_null(np.nan).to_numpy(), dtype=np.float32)
