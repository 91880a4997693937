"""How good scores are: completeness, purity, AUC, calibration, with bootstrap intervals. numpy; no torch, no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from deepshadows.model.calibration import ECE_BINS, ece_bins
from deepshadows.outcomes import InputError

MEASURES = ("accuracy", "completeness", "purity", "auc", "ece")
"""What is told of a network, in this order."""
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap: 95 %."""
_CELLS_AT_ONCE = 4_000_000
"""Resampled rows held at a time: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows whose truth is known.

    Attributes
    ----------
    probabilities : float64 (N,)
        p_lsbg; NaN where the row has no score. Such a row is not selected, and has no part in AUC and ECE.
    labels : int8 (N,)
        1 low-surface-brightness galaxy, 0 artifact.
    undetected : bool (N,), optional
        LSBGs that are no detections: lost for the completeness, but no part of a survey's detections, of which a
        prevalence is the share that are LSBGs. Without it, there are none.
    """

    probabilities: NDArray[np.float64]
    labels: NDArray[np.int8]
    undetected: NDArray[np.bool_] | None = None

    @property
    def classes(self) -> NDArray[np.float64]:
        """One in the column of each row's class, (N, 3): artifacts, LSBGs, and of these the detected ones."""
        lsbg = self.labels == 1
        detected = lsbg if self.undetected is None else lsbg & ~self.undetected
        return np.stack([~lsbg, lsbg, detected], axis=1).astype(np.float64)

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise InputError("there are no labelled rows to judge; check that the input has labels 0 and 1")
        if self.probabilities.shape != self.labels.shape:
            raise InputError(f"{self.probabilities.shape} probabilities for {self.labels.shape} labels")
        wrong = np.unique(self.labels[~np.isin(self.labels, (0, 1))])
        if len(wrong):
            raise InputError(f"labels must be 1 (LSBG) or 0 (artifact); found {wrong.tolist()}")


def judge(
    rows: Judged,
    threshold: float,
    *,
    prevalence: float | None = None,
    calibrated_at: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> dict[str, float | int | None]:
    """Every measure at one threshold, with 95 % intervals.

    Parameters
    ----------
    threshold : float
        A row is selected where p_lsbg >= threshold.
    prevalence : float, optional
        Share of LSBGs among the detections of a survey that the detected rows stand for, each class for itself; the
        probabilities must have been corrected to it. Adds purity and accuracy there, and makes the calibration error
        that of the survey.
    calibrated_at : float, optional
        Share of LSBGs at which the probabilities are calibrated: the calibration error is that of a sample with this
        share, whatever that of the rows. Without it, and without a prevalence, rows weigh as they come.
    resamples : int
        Bootstrap resamples of the rows.

    Returns
    -------
    dict
        n, threshold, accuracy, completeness, purity, auc, ece, tn, fp, fn, tp, with a prevalence also
        purity_at_prevalence and accuracy_at_prevalence, and for all but the first two `_lo` and `_hi`; and
        ece_if_perfect. None where a measure is not defined: purity with nothing selected, AUC with one class.

    Notes
    -----
    The calibration error is a sum of absolute values, so scatter adds to it: perfect probabilities show an error of
    `ece_if_perfect` on as many rows (0.08 at n = 200, 0.015 at 5,000), and resamples, which scatter once more, lie
    above the sample. Its interval is therefore the basic bootstrap's, 2 * value - percentiles, which takes that shift
    out; with a true error of 0.065 the percentiles themselves held it in 2 % of samples of 200, this in 90 %.
    """
    prepared = Prepared(rows, threshold, prevalence, calibrated_at)
    cells = _measures(prepared, np.ones((1, len(rows.labels))))
    parts = [_measures(prepared, weights) for weights in resampled(len(rows.labels), resamples, seed)]
    result: dict[str, float | int | None] = {"n": len(rows.labels), "threshold": float(threshold)}
    for name, value in cells.items():
        drawn = np.concatenate([part[name] for part in parts]) if parts else np.empty(0)
        drawn = drawn[np.isfinite(drawn)]
        whole = name in ("tn", "fp", "fn", "tp")
        result[name] = None if not np.isfinite(value[0]) else int(value[0]) if whole else float(value[0])
        result[f"{name}_lo"], result[f"{name}_hi"] = interval(drawn) if np.isfinite(value[0]) else (None, None)
    error, low, high = (result[name] for name in ("ece", "ece_lo", "ece_hi"))
    if error is not None and low is not None and high is not None:
        result["ece_lo"], result["ece_hi"] = max(0.0, 2 * error - high), min(1.0, max(error, 2 * error - low))
    result["ece_if_perfect"] = prepared.error_if_perfect()
    return result


def interval(drawn: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """95 % of the resamples in which the measure is defined; None where there are none."""
    defined = drawn[np.isfinite(drawn)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)


def auc(rows: Judged) -> float | None:
    """Chance that an LSBG scores higher than an artifact, ties counted half; None with one class. Any score will do."""
    prepared = Ranked(rows)
    value = float(_auc(prepared, np.ones((1, len(rows.labels))))[0])
    return value if np.isfinite(value) else None


def resampled(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each row is drawn, (R, count) a block; the blocks bound the memory."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // count)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


class Ranked:
    """The scored rows in order of score, from the lowest; rows of equal score form a group."""

    def __init__(self, rows: Judged) -> None:
        p = rows.probabilities
        self.scored = np.flatnonzero(np.isfinite(p))
        self.order = self.scored[np.argsort(p[self.scored], kind="stable")]
        ordered = p[self.order]
        self.group_starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else self.order
        self.ordered_positive = (rows.labels[self.order] == 1).astype(np.float64)

    def in_groups(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of LSBGs and of artifacts in each group, (R, G) each, for weights (R, N)."""
        ordered = weights[:, self.order]
        positive = np.add.reduceat(ordered * self.ordered_positive, self.group_starts, axis=1)
        negative = np.add.reduceat(ordered * (1 - self.ordered_positive), self.group_starts, axis=1)
        return positive, negative


class Prepared(Ranked):
    """What does not change between resamples: also the cell of each row and its calibration bin."""

    def __init__(
        self, rows: Judged, threshold: float, prevalence: float | None, calibrated_at: float | None = None
    ) -> None:
        super().__init__(rows)
        self.prevalence = prevalence
        self.calibrated_at = calibrated_at if prevalence is None else prevalence
        p, positive = rows.probabilities, rows.labels == 1
        selected = np.nan_to_num(p, nan=-1.0) >= threshold
        masks = (~positive & ~selected, ~positive & selected, positive & ~selected, positive & selected)
        self.cells = np.stack(masks, axis=1).astype(np.float64)  # tn fp fn tp
        self.detected_lsbgs = rows.classes[:, 2]
        scored, shape = self.scored, (len(p), ECE_BINS)
        labels, bins = rows.labels[scored], ece_bins(p[scored])
        gaps = p[scored] - labels
        of_each = [labels == 0, labels == 1]  # artifacts, LSBGs
        self.gaps = [csr_array((gaps[own], (scored[own], bins[own])), shape) for own in of_each]
        self.of_class = np.zeros((len(p), 2))
        self.of_class[scored, labels] = 1.0
        self._variances = csr_array((p[scored] * (1 - p[scored]), (scored, bins)), shape)

    def error_if_perfect(self) -> float | None:
        """The calibration error that scatter alone would show: E|x| of a Gaussian for the gap of each bin."""
        counts = self.of_class.sum(axis=0)
        if not counts.any():
            return None
        at = self.calibrated_at
        shares = counts / counts.sum() if at is None else np.array([1 - at, at])
        weights = self.of_class @ np.where(counts > 0, shares / np.maximum(counts, 1), 0)
        return float(np.sqrt(2 / np.pi) * np.sqrt(weights**2 @ self._variances).sum())


def _measures(rows: Prepared, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Measures of R weightings (R, N) of the rows, each (R,), NaN where undefined."""
    tn, fp, fn, tp = (weights @ rows.cells).T
    measures = {
        "accuracy": ratio(tp + tn, tn + fp + fn + tp),
        "completeness": ratio(tp, tp + fn),
        "purity": ratio(tp, tp + fp),
        "auc": _auc(rows, weights),
        "ece": _calibration_error(rows, weights),
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
    }
    if rows.prevalence is not None:
        true = rows.prevalence * ratio(tp, weights @ rows.detected_lsbgs)
        false = (1 - rows.prevalence) * ratio(fp, fp + tn)
        measures["purity_at_prevalence"] = ratio(true, true + false)
        measures["accuracy_at_prevalence"] = true + (1 - rows.prevalence) - false
    return measures


def _calibration_error(rows: Prepared, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the scored rows; with `calibrated_at`, each class weighs as at that prevalence."""
    artifacts, lsbgs = (weights @ rows.of_class).T
    gaps = [weights @ of_class for of_class in rows.gaps]
    if rows.calibrated_at is None:
        return ratio(np.abs(gaps[0] + gaps[1]).sum(axis=1), artifacts + lsbgs)
    mean_gaps = [ratio(gap.T, count).T for gap, count in zip(gaps, (artifacts, lsbgs), strict=True)]
    gap = (1 - rows.calibrated_at) * mean_gaps[0] + rows.calibrated_at * mean_gaps[1]
    return np.asarray(np.abs(gap).sum(axis=1))


def _auc(rows: Ranked, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that an LSBG scores higher than an artifact, ties counted half: shape (R,)."""
    if not len(rows.order):
        return np.full(len(weights), np.nan)
    positive, negative = rows.in_groups(weights)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """`part / whole`, NaN where `whole` is not positive."""
    shape = np.broadcast_shapes(part.shape, whole.shape)
    quotient: NDArray[np.float64] = np.divide(part, whole, out=np.full(shape, np.nan), where=whole > 0)
    return quotient
