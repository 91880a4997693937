"""The guard of a fast engine, of DESIGN section 5: its scores beside those of the fp32 reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepshadows.model.card import Card
from deepshadows.model.metrics import Judged, auc

MOST_APART, SHARE_WITHIN, MOST_MEDIAN = 0.02, 0.999, 0.002
MOST_FLIPPED = 1 / 2000
MOST_AUC_APART = 1e-4


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far scores are from those of the reference.

    Attributes
    ----------
    within : float
        Share of the images whose p_lsbg differs by at most `MOST_APART`.
    largest, median : float
        Difference of p_lsbg.
    flipped, images : int
        Images on the other side of the threshold, and all.
    auc_apart : float
        Difference of the AUC of the labelled ones; NaN where these are not of both classes.
    """

    within: float
    largest: float
    median: float
    flipped: int
    images: int
    auc_apart: float

    @property
    def good(self) -> bool:
        """Whether all that DESIGN asks for holds; an AUC that is not known does not hold."""
        scores = self.within >= SHARE_WITHIN and self.median <= MOST_MEDIAN
        return scores and self.flipped <= MOST_FLIPPED * self.images and self.auc_apart <= MOST_AUC_APART

    def __str__(self) -> str:
        return (
            f"{'yes' if self.good else 'NO'}: max {self.largest:.4f}, median {self.median:.5f}, "
            f"{self.flipped} of {self.images} flipped, AUC {self.auc_apart:.6f} off"
        )


def agreement(
    card: Card, logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int8]
) -> Agreement:
    """Of logits (N,) and labels (N,), -1 where there is none."""
    p, q = (card.probabilities(values.ravel()).astype(float) for values in (logits, reference))
    apart = np.abs(p - q)
    known = labels >= 0
    areas = [
        auc(Judged(probabilities=values[known], labels=labels[known])) if known.any() else None for values in (p, q)
    ]
    return Agreement(
        within=float((apart <= MOST_APART).mean()),
        largest=float(apart.max()),
        median=float(np.median(apart)),
        flipped=int(((p >= card.threshold) != (q >= card.threshold)).sum()),
        images=len(p),
        auc_apart=float("nan") if areas[0] is None or areas[1] is None else abs(areas[0] - areas[1]),
    )
