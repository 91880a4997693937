"""The threshold for a wanted purity or completeness, and how well it is known. numpy; no torch, no Ray."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepshadows.model.metrics import RESAMPLES, Judged, Ranked, interval, ratio, resampled
from deepshadows.outcomes import InputError


def choose_threshold(
    rows: Judged,
    *,
    purity: float | None = None,
    completeness: float | None = None,
    prevalence: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> dict[str, float | None]:
    """The threshold for a wanted purity or completeness, and what it does to rows that had no part in the choice.

    A threshold is chosen anew on each bootstrap resample and judged on the rows that this resample lacks. On the rows
    of the choice themselves the wanted value is always reached; on others only about.

    Parameters
    ----------
    purity, completeness : float
        What is wanted, one of them: the threshold of highest completeness whose selection is at least this pure, or
        the highest whose selection holds at least this share of the LSBGs.
    prevalence : float, optional
        Purity is that in a survey with this share of LSBGs among its detections, each class of the detected rows
        standing for its own.

    Returns
    -------
    dict
        threshold, unseen_purity and unseen_completeness (medians), each with `_lo` and `_hi`; unreached, the share of
        the resamples in which no threshold gives what is wanted.

    Raises
    ------
    InputError
        No threshold gives what is wanted, or no row has a score.
    """
    choice = _Choice(rows, purity=purity, completeness=completeness, prevalence=prevalence)
    result: dict[str, float | None] = {"threshold": choice.threshold()}
    parts = [choice.resample(weights) for weights in resampled(len(rows.labels), resamples, seed)]
    columns = np.concatenate(parts) if parts else np.empty((0, 3))
    result["threshold_lo"], result["threshold_hi"] = interval(columns[:, 0])
    for name, drawn in (("unseen_purity", columns[:, 1]), ("unseen_completeness", columns[:, 2])):
        defined = drawn[np.isfinite(drawn)]
        result[name] = float(np.median(defined)) if len(defined) else None
        result[f"{name}_lo"], result[f"{name}_hi"] = interval(drawn)
    result["unreached"] = float(np.isnan(columns[:, 0]).mean()) if len(columns) else 0.0
    return result


class _Choice:
    """The rows in order of score, and what is wanted of a threshold on them."""

    def __init__(
        self,
        rows: Judged,
        *,
        purity: float | None = None,
        completeness: float | None = None,
        prevalence: float | None = None,
    ) -> None:
        self._ranked = Ranked(rows)
        if not len(self._ranked.order):
            raise InputError("no row has a score, so there is no threshold to choose")
        wanted = [value for value in (purity, completeness) if value is not None]
        if len(wanted) != 1:
            raise ValueError("want either a purity or a completeness")
        self._name = "purity" if completeness is None else "completeness"
        (self._wanted,) = wanted
        self._prevalence = prevalence
        starts = self._ranked.group_starts
        self._thresholds = rows.probabilities[self._ranked.order][starts][::-1]
        self._classes = rows.classes

    def threshold(self) -> float:
        """On the rows as they are."""
        pure, complete = self._curves(np.ones((1, len(self._classes))))
        (place,) = self._chosen(pure, complete)
        if place >= 0:
            return float(self._thresholds[place])
        best = float(np.nan_to_num(complete[0, -1] if self._name == "completeness" else np.nan_to_num(pure).max()))
        raise InputError(f"no threshold reaches a {self._name} of {self._wanted:g}; the highest is {best:.3f}")

    def resample(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """For weights (R, N): threshold, purity and completeness on the rows of no weight, (R, 3); NaN if unreached."""
        places = self._chosen(*self._curves(weights))
        pure, complete = self._curves((weights == 0).astype(np.float64))
        each = np.arange(len(places))
        result = np.stack([self._thresholds[places], pure[each, places], complete[each, places]], axis=1)
        result[places < 0] = np.nan
        return result

    def _curves(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Purity and completeness at each threshold, from the highest, (R, G) each; NaN where undefined."""
        positive, negative = self._ranked.in_groups(weights)
        true, false = (np.cumsum(part[:, ::-1], axis=1) for part in (positive, negative))
        artifacts, lsbgs, detected = (weights @ self._classes).T[:, :, None]
        complete = ratio(true, lsbgs)
        if self._prevalence is not None:
            true = self._prevalence * ratio(true, detected)
            false = (1 - self._prevalence) * ratio(false, artifacts)
        return ratio(true, true + np.nan_to_num(false)), complete

    def _chosen(self, pure: NDArray[np.float64], complete: NDArray[np.float64]) -> NDArray[np.intp]:
        """Place of the lowest threshold that is pure enough, or of the highest that is complete enough; -1 for none."""
        if self._name == "purity":
            reached = (pure >= self._wanted) & (complete > 0)
            place = reached.shape[1] - 1 - np.argmax(reached[:, ::-1], axis=1)
        else:
            reached = complete >= self._wanted
            place = np.argmax(reached, axis=1)
        return np.where(reached.any(axis=1), place, -1)
