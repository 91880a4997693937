"""What an experiment leaves: tables of numbers beside the paper's, pictures, notes. Imports no Ray and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from deepshadows.model.metrics import Judged, judge
from deepshadows.verbs.page import Picture
from deepshadows.verbs.paper.published import published

MEASURES = ("accuracy", "completeness", "purity", "auc")
COUNTS = ("tn", "fp", "fn", "tp")
DECISION = 0.5

Figures = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of ours with its interval, what the paper has in its place, and what we want to reach."""

    measure: str
    ours: float | int | None
    low: float | None = None
    high: float | None = None
    paper: float | int | None = None
    paper_low: float | None = None
    paper_high: float | None = None
    target: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model or setting: what it was trained and judged on, and its numbers."""

    name: str
    n_train: int
    n_test: int
    epochs: int | None
    seed: int | None
    numbers: tuple[Number, ...]

    def __getitem__(self, measure: str) -> Number:
        """The number of this name."""
        return next(number for number in self.numbers if number.measure == measure)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with the same measures; `interval` says what the ranges behind the numbers are."""

    title: str
    rows: tuple[Row, ...]
    interval: str = "95 % bootstrap interval, 1000 resamples of the test rows"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment of the report. With `skipped`, it was not run, and that is why."""

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    training_seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For the JSON file: all but the pixels."""
        return {
            "title": self.title,
            "skipped": self.skipped,
            "tables": [asdict(table) for table in self.tables],
            "figures": [f"figures/{picture.name}.png" for picture in self.pictures],
            "notes": list(self.notes),
            "details": dict(self.details),
            "training_seconds": round(self.training_seconds, 1),
        }


def judged(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> dict[str, float | int | None]:
    """Measures with intervals of scores in [0, 1], cut at 0.5."""
    return judge(Judged(probabilities=np.asarray(scores, dtype=np.float64), labels=labels), DECISION)


def judged_logits(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> dict[str, float | int | None]:
    """The same of logits, cut at 0, as the paper cuts its sigmoid."""
    return judged(expit(logits.astype(np.float64)), labels)


def numbers(
    experiment: str,
    row: str,
    figures: Figures,
    measures: tuple[str, ...] = (*MEASURES, *COUNTS),
    targets: Mapping[str, float] | None = None,
) -> tuple[Number, ...]:
    """Our figures (as `judge` names them) beside the paper's of this experiment and row."""
    found = []
    for measure in measures:
        paper = published(experiment, row, measure)
        interval = measure not in COUNTS
        found.append(
            Number(
                measure=measure,
                ours=figures.get(measure),
                low=figures.get(f"{measure}_lo") if interval else None,
                high=figures.get(f"{measure}_hi") if interval else None,
                paper=paper.value,
                paper_low=paper.low,
                paper_high=paper.high,
                target=(targets or {}).get(measure),
            )
        )
    return tuple(found)
