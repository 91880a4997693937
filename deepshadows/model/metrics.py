"""How good scores are: completeness, purity, AUC, calibration, with bootstrap intervals. numpy; no torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepshadows.model.calibration import ECE_BINS, ece_bins
from deepshadows.outcomes import InputError

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
    """

    probabilities: NDArray[np.float64]
    labels: NDArray[np.int8]

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise InputError("there are no labelled rows to judge; check that the input has labels 0 and 1")
        if self.probabilities.shape != self.labels.shape:
            raise InputError(f"{self.probabilities.shape} probabilities for {self.labels.shape} labels")
        wrong = np.unique(self.labels[~np.isin(self.labels, (0, 1))])
        if len(wrong):
            raise InputError(f"labels must be 1 (LSBG) or 0 (artifact); found {wrong.tolist()}")


def judge(
    rows: Judged, threshold: float, *, resamples: int = RESAMPLES, seed: int = 1
) -> dict[str, float | int | None]:
    """Every measure at one threshold, with 95 % intervals.

    Parameters
    ----------
    threshold : float
        A row is selected where p_lsbg >= threshold.
    resamples : int
        Bootstrap resamples of the rows.

    Returns
    -------
    dict
        n, threshold, accuracy, completeness, purity, auc, ece, tn, fp, fn, tp, and for all but the first two
        `_lo` and `_hi`. None where a measure is not defined: purity with nothing selected, AUC with one class.
    """
    cells = _measures(_Prepared(rows, threshold), np.ones((1, len(rows.labels))))
    drawn = _bootstrap(rows, threshold, resamples, seed)
    result: dict[str, float | int | None] = {"n": len(rows.labels), "threshold": float(threshold)}
    for name, value in cells.items():
        defined = drawn.get(name, np.empty(0))
        defined = defined[np.isfinite(defined)]
        low, high = np.percentile(defined, INTERVAL) if len(defined) and np.isfinite(value[0]) else (None, None)
        whole = name in ("tn", "fp", "fn", "tp")
        result[name] = None if not np.isfinite(value[0]) else int(value[0]) if whole else float(value[0])
        result[f"{name}_lo"] = None if low is None else float(low)
        result[f"{name}_hi"] = None if high is None else float(high)
    return result


def auc(rows: Judged) -> float | None:
    """Chance that an LSBG scores higher than an artifact, ties counted half; None with one class. Any score will do."""
    prepared = _Ranked(rows)
    value = float(_auc(prepared, np.ones((1, len(rows.labels))))[0])
    return value if np.isfinite(value) else None


def _bootstrap(rows: Judged, threshold: float, resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Each measure on each resample, NaN where undefined; blocks of resamples bound the memory."""
    rng = np.random.default_rng(seed)
    count = len(rows.labels)
    block = max(1, _CELLS_AT_ONCE // count)
    prepared = _Prepared(rows, threshold)
    parts = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        parts.append(_measures(prepared, weights.astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


class _Ranked:
    """The scored rows in order of score."""

    def __init__(self, rows: Judged) -> None:
        p = rows.probabilities
        self.scored = np.flatnonzero(np.isfinite(p))
        self.order = self.scored[np.argsort(p[self.scored], kind="stable")]
        ordered = p[self.order]
        self.group_starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # rows of equal score
        self.ordered_positive = (rows.labels[self.order] == 1).astype(np.float64)


class _Prepared(_Ranked):
    """What does not change between resamples: also the cell of each row and its calibration bin."""

    def __init__(self, rows: Judged, threshold: float) -> None:
        super().__init__(rows)
        p, positive = rows.probabilities, rows.labels == 1
        selected = np.nan_to_num(p, nan=-1.0) >= threshold
        masks = (~positive & ~selected, ~positive & selected, positive & ~selected, positive & selected)
        self.cells = np.stack(masks, axis=1).astype(np.float64)  # tn fp fn tp
        scored = self.scored
        self.gaps = np.zeros((len(p), ECE_BINS))
        self.gaps[scored, ece_bins(p[scored])] = p[scored] - rows.labels[scored]


def _measures(rows: _Prepared, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Measures of R weightings (R, N) of the rows, each (R,), NaN where undefined."""
    tn, fp, fn, tp = (weights @ rows.cells).T
    scored = weights[:, rows.scored].sum(axis=1)
    return {
        "accuracy": _ratio(tp + tn, tn + fp + fn + tp),
        "completeness": _ratio(tp, tp + fn),
        "purity": _ratio(tp, tp + fp),
        "auc": _auc(rows, weights),
        "ece": _ratio(np.abs(weights @ rows.gaps).sum(axis=1), scored),
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
    }


def _auc(rows: _Ranked, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that an LSBG scores higher than an artifact, ties counted half: shape (R,)."""
    if not len(rows.order):
        return np.full(len(weights), np.nan)
    ordered = weights[:, rows.order]
    positive = np.add.reduceat(ordered * rows.ordered_positive, rows.group_starts, axis=1)
    negative = np.add.reduceat(ordered * (1 - rows.ordered_positive), rows.group_starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return _ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return quotient


def threshold_for_purity(rows: Judged, purity: float, prevalence: float | None = None) -> float:
    """The threshold of highest completeness whose selection is at least this pure.

    Parameters
    ----------
    purity : float
        Wanted share of LSBGs in the selection.
    prevalence : float, optional
        Share of LSBGs in the survey that the rows stand for; without it, that of the rows themselves.

    Raises
    ------
    InputError
        No threshold is that pure, or no row has a score.
    """
    scored = np.isfinite(rows.probabilities)
    order = np.flatnonzero(scored)[np.argsort(-rows.probabilities[scored], kind="stable")]
    if not len(order):
        raise InputError("no row has a score, so there is no threshold to choose")
    p, positive = rows.probabilities[order], rows.labels[order] == 1
    true, false = np.cumsum(positive, dtype=np.float64), np.cumsum(~positive, dtype=np.float64)
    if prevalence is not None:
        lsbgs, artifacts = int(np.sum(rows.labels == 1)), int(np.sum(rows.labels == 0))
        true, false = true * prevalence / max(lsbgs, 1), false * (1 - prevalence) / max(artifacts, 1)
    last = np.r_[p[1:] != p[:-1], True]  # rows of equal score are selected together
    pure = _ratio(true, true + false)
    reached = np.flatnonzero(last & (pure >= purity) & (true > 0))
    if not len(reached):
        best = np.nanmax(np.where(last, pure, np.nan))
        raise InputError(f"no threshold reaches a purity of {purity:g}; the purest selection has {best:.3f}")
    return float(p[reached[-1]])
