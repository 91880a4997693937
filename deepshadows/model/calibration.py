"""From logits to probabilities that mean what they say. numpy and scikit-learn; no torch, no Ray."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from deepshadows.model.card import Calibration

ECE_BINS = 15
FLATTEST = 0.01
"""Smallest slope: a network that ranks the rows of the fit backwards knows nothing, and its p_lsbg stays near 0.5."""
SMALLEST = 1e-12
"""Probabilities are kept this far from 0 and 1 before odds are taken."""


def fit_platt(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> Calibration:
    """Slope and intercept that make p_lsbg calibrated at a prevalence of 0.5 (Platt 1999).

    Measured on 836 simulated cut-outs (5 networks, fitted on 255 others), calibration error and log loss: none 0.062,
    0.330; this 0.037, 0.290; temperature 0.039, 0.293; beta 0.035, 0.290; isotonic 0.037, 0.306. Perfect
    probabilities would show 0.033 on so few rows.

    Classes are weighted to equal shares. Targets are Platt's (N+1)/(N+2) instead of 1, and 1/(N+2) instead of 0, so
    that separable classes, too, give finite values. Where labels fall with the logit, the slope is `FLATTEST`: the few
    rows of a small sample would otherwise turn the network's order round, and hide it from every measure.

    Parameters
    ----------
    logits : float32 (N,)
    labels : int8 (N,)
        0 or 1; both must occur.
    """
    positive = labels == 1
    counts = np.array([np.count_nonzero(~positive), np.count_nonzero(positive)])
    target = np.where(positive, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    weight = np.where(positive, 0.5 / counts[1], 0.5 / counts[0]) * len(labels)
    x = np.tile(logits.astype(np.float64), 2)[:, None]
    y = np.repeat([1, 0], len(labels))
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    model.fit(x, y, sample_weight=np.concatenate([weight * target, weight * (1 - target)]))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < FLATTEST:
        slope, intercept = FLATTEST, -FLATTEST * float(np.average(logits, weights=weight))
    return Calibration(slope=slope, intercept=intercept)


def ece_bins(probabilities: NDArray[np.floating]) -> NDArray[np.intp]:
    """Bin of each probability, shape (N,)."""
    return np.minimum((probabilities * ECE_BINS).astype(np.intp), ECE_BINS - 1)


def at_prevalence(
    probabilities: NDArray[np.floating], prevalence: float, calibrated_at: float = 0.5
) -> NDArray[np.float64]:
    """Probabilities for a sample with another share of LSBGs than the one they are calibrated at.

    Parameters
    ----------
    probabilities : float (N,)
        NaN stays NaN.
    prevalence, calibrated_at : float
        Shares of LSBGs, in (0, 1).

    Returns
    -------
    float64 (N,)
        The posterior odds times the ratio of the prior odds.
    """
    p = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
    ratio = prevalence / (1 - prevalence) * (1 - calibrated_at) / calibrated_at
    odds = p / (1 - p) * ratio
    return np.asarray(odds / (1 + odds))
