"""Do newly scored rows look like those of the version before, and like the training set? Arrays in; no I/O, no Ray.

Each check compares a size of effect with a limit: what matters (a constant below, with its reason) plus what chance
explains at these numbers of rows and units. Many rows alone never alarm, few rows need a larger effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows.catalog.statistics import BINS, LOG_ODDS_EDGES, NO_REGION

LEAST_ROWS = 300
"""Scored rows on either side that a comparison needs."""
LEAST_UNITS = 8
"""Units on the reference side from which their own scatter is taken into account."""
CHANCE = 1e-5
"""Of an alarm by chance in one check; a survey of 700 regions has some 2000 checks a run."""
SIGMAS = 4.5
SCORE_SHIFT = 0.2
"""Largest difference of the two cumulative distributions of scores (Kolmogorov-Smirnov): a shift of half a spread."""
IMAGE_SHIFT_SIGMA = 0.5
"""Of the mean of a summary, in spreads of single images."""
OUT_OF_DOMAIN_SHIFT = 0.05
"""Of the share of rows out of the domain."""
NEW_SKY = 2.0
"""Factor on all three where the version before has nothing in the same part of the sky: skies differ."""
TRAINING_IMAGE_SHIFT_SIGMA = 1.5
"""Training sets are drawn by class, surveys as they come: their means differ by up to a spread where all is well."""
TRAINING_OUT_OF_DOMAIN = 0.10
"""Share of rows unlike the training images: 0.003 of those are, 0.03 of unseen sky (tests/benchmarks/bench_domain)."""
PREVALENCE_SLACK = 0.05


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The statistics of U units side by side; see `catalog.statistics.UnitStatistics`.

    Attributes
    ----------
    rows, unscored, out_of_domain, region : int64 (U,)
    scores : int64 (U, BINS)
    mean, spread : float64 (U, F)
        NaN where a unit has none; F is 0 where no unit has.
    """

    rows: NDArray[np.int64]
    unscored: NDArray[np.int64]
    out_of_domain: NDArray[np.int64]
    region: NDArray[np.int64]
    scores: NDArray[np.int64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, table: pa.Table) -> Sample:
        """From rows of STATISTICS_SCHEMA."""
        scores = np.array(table["scores"].to_pylist(), dtype=np.int64).reshape(-1, BINS)
        return cls(
            rows=_whole(table["rows"]),
            unscored=_whole(table["unscored"]),
            out_of_domain=_whole(table["out_of_domain"]),
            region=_whole(table["region"]),
            scores=scores,
            mean=_rectangular(table["mean"].to_pylist()),
            spread=_rectangular(table["spread"].to_pylist()),
        )

    def take(self, units: NDArray[np.bool_]) -> Sample:
        return Sample(**{name: values[units] for name, values in vars(self).items()})

    @property
    def scored(self) -> NDArray[np.int64]:
        """Scored rows of each unit, (U,)."""
        return self.rows - self.unscored

    @property
    def total(self) -> int:
        return int(self.scored.sum())


def _whole(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _rectangular(values: list[list[float]]) -> NDArray[np.float64]:
    width = max((len(row) for row in values), default=0)
    nothing = [np.nan] * width
    return np.array([row or nothing for row in values], dtype=np.float64).reshape(len(values), width)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of the training set.

    Attributes
    ----------
    mean, spread : float64 (F,)
        Of ln(1 + summary) over its images; None where the checkpoint states no domain.
    names : tuple of str, F
        Of the summaries.
    kept, mistaken : float or None
        Shares of LSBGs and of artifacts that the network puts above `threshold`; None where the card states none.
    """

    threshold: float
    mean: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None
    names: tuple[str, ...] = ()
    kept: float | None = None
    mistaken: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: it alarms where `value` lies above `limit`."""

    against: str
    where: str
    rows: int
    detail: str = ""
    what: str = ""
    value: float = 0.0
    limit: float = 0.0

    @property
    def alarm(self) -> bool:
        return self.value > self.limit

    def __str__(self) -> str:
        told = f" ({self.detail})" if self.detail else ""
        return f"{self.what} against {self.against}, {self.where}: {self.value:.3f}, limit {self.limit:.3f}{told}"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """All checks of one version; nothing was judged where there are none."""

    findings: tuple[Finding, ...]
    rows: int

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.alarm)

    @property
    def verdict(self) -> str:
        return "drift" if self.alarms else "stable" if self.findings else "not judged"

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if not self.findings:
            return f"drift: not judged ({self.rows} newly scored rows; {LEAST_ROWS} on either side are the least)"
        if not self.alarms:
            return f"drift: none ({len(self.findings)} checks on {self.rows} newly scored rows)"
        worst = max(self.alarms, key=lambda finding: finding.value / finding.limit)
        more = f"; {len(self.alarms) - 1} more in drift.json" if len(self.alarms) > 1 else ""
        return f"DRIFT: {worst}{more}"

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "line": self.line,
            "rows": self.rows,
            "findings": [{**asdict(finding), "alarm": finding.alarm} for finding in self.findings],
        }


def judge(added: Sample, before: Sample | None, training: Training) -> Drift:
    """Compare newly scored units with the version before, as a whole and by region, and with the training set."""
    findings: list[Finding] = []
    if before is not None:
        same_sky = before.take(np.isin(before.region, added.region))
        known = same_sky.total >= LEAST_ROWS
        findings += _against_before(added, same_sky if known else before, "survey", training, new_sky=not known)
        for region in np.unique(added.region[added.region != NO_REGION]):
            here, then = added.take(added.region == region), before.take(before.region == region)
            known = then.total >= LEAST_ROWS
            where = f"Norder=3 Npix={region}"
            findings += _against_before(here, then if known else before, where, training, new_sky=not known)
    findings += _against_training(added, training)
    return Drift(findings=tuple(findings), rows=added.total)


def _against_before(
    added: Sample, before: Sample, where: str, training: Training, *, new_sky: bool
) -> Iterator[Finding]:
    if min(added.total, before.total) < LEAST_ROWS:
        return
    factor = NEW_SKY if new_sky else 1.0
    check = Finding(against="version before", where=where, rows=added.total, detail="new sky" if new_sky else "")
    value, chance = distance(added.scores.sum(axis=0), before.scores.sum(axis=0))
    yield replace(check, what="scores (distance of distributions)", value=value, limit=factor * SCORE_SHIFT + chance)
    (share, error), (share_before, error_before) = (_share(part.out_of_domain, part.scored) for part in (added, before))
    limit = factor * OUT_OF_DOMAIN_SHIFT + SIGMAS * float(np.hypot(error, error_before))
    yield replace(check, what="rise of the share out of domain", value=share - share_before, limit=limit)
    if added.mean.shape[1] and added.mean.shape[1] == before.mean.shape[1]:
        yield _images(check, added, _moments(before), factor * IMAGE_SHIFT_SIGMA, training.names)


def _against_training(added: Sample, training: Training) -> Iterator[Finding]:
    if added.total < LEAST_ROWS:
        return
    check = Finding(against="training set", where="survey", rows=added.total)
    if training.mean is not None and training.spread is not None and added.mean.shape[1] == len(training.mean):
        known = training.mean, training.spread, np.zeros_like(training.mean)
        yield _images(check, added, known, TRAINING_IMAGE_SHIFT_SIGMA, training.names)
        share, error = _share(added.out_of_domain, added.scored)
        limit = TRAINING_OUT_OF_DOMAIN + SIGMAS * error
        yield replace(check, what="share out of domain", value=share, limit=limit)
    if training.kept is not None and training.mistaken is not None and training.kept > training.mistaken:
        yield _prevalence(check, added, training.threshold, training.kept, training.mistaken)


def _prevalence(check: Finding, added: Sample, threshold: float, kept: float, mistaken: float) -> Finding:
    """How far the share of LSBGs that the error rates of the training imply lies outside 0 to 1."""
    cut = int(np.searchsorted(LOG_ODDS_EDGES, np.log(threshold / (1 - threshold))))
    share, error = _share(added.scores[:, cut:].sum(axis=1), added.scored)
    implied = (share - mistaken) / (kept - mistaken)
    return replace(
        check,
        what="scores (implied share of LSBGs, beyond 0 to 1)",
        value=max(-implied, implied - 1, 0.0),
        limit=PREVALENCE_SLACK + SIGMAS * error / (kept - mistaken),
        detail=f"implied share {implied:.3f}",
    )


Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Mean and spread of the summaries of single images, and the standard error of the mean, (F,) each."""


def _images(check: Finding, added: Sample, reference: Moments, effect: float, names: tuple[str, ...]) -> Finding:
    """The summary whose mean lies farthest beyond its limit, in spreads of single images."""
    mean, spread, error = reference
    mean_added, _, error_added = _moments(added)
    spread = np.maximum(spread, 1e-6)
    value = np.abs(mean_added - mean) / spread
    limit = effect + SIGMAS * np.hypot(error_added, error) / spread
    worst = int(np.argmax(value / limit))
    name = names[worst] if worst < len(names) else f"summary {worst}"
    detail = f"{check.detail}; {name}" if check.detail else name
    return replace(
        check, what="images (mean, in spreads)", value=float(value[worst]), limit=float(limit[worst]), detail=detail
    )


def distance(counts: NDArray[np.int64], reference: NDArray[np.int64]) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two histograms over the same bins, and what chance alone makes of it."""
    rows, reference_rows = counts.sum(), reference.sum()
    apart = np.abs(np.cumsum(counts) / rows - np.cumsum(reference) / reference_rows).max()
    return float(apart), float(np.sqrt(-np.log(CHANCE / 2) / 2 * (1 / rows + 1 / reference_rows)))


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> tuple[float, float]:
    """A share and its standard error: that of independent rows, or of units by their own scatter where it is larger."""
    rows = whole.sum()
    share = part.sum() / rows
    error = np.sqrt(max(share * (1 - share), 1 / rows) / rows)
    filled = whole > 0
    if filled.sum() >= LEAST_UNITS:
        weights = whole[filled] / rows
        off = part[filled] / whole[filled] - share
        error = max(error, np.sqrt((weights**2 * off**2).sum()))
    return float(share), float(error)


def _moments(sample: Sample) -> Moments:
    """Over the images of all units."""
    known = np.isfinite(sample.mean).all(axis=1) & (sample.scored > 0)
    weights = sample.scored[known] / sample.scored[known].sum()
    means, spreads = sample.mean[known], sample.spread[known]
    mean = weights @ means
    spread = np.sqrt(weights @ (spreads**2 + (means - mean) ** 2))
    error = spread / np.sqrt(sample.scored[known].sum())
    if known.sum() >= LEAST_UNITS:
        error = np.maximum(error, np.sqrt((weights**2) @ (means - mean) ** 2))
    return mean, spread, error
