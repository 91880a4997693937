"""`evaluate`: a checkpoint on labelled cut-outs, or a catalogue against a truth table. Runs in this process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows import schema, storage
from deepshadows.catalog.collection import read_current
from deepshadows.model.calibration import at_prevalence
from deepshadows.model.metrics import Judged, judge, threshold_for_purity
from deepshadows.model.scorer import Scorer, load_scorer
from deepshadows.outcomes import InputError, Summary
from deepshadows.settings import Evaluate
from deepshadows.sky.detections import read_table
from deepshadows.sky.matching import LSBG, label_by_truth
from deepshadows.sky.shards import Cutouts, read_cutouts
from deepshadows.verbs.classify_plan import card_geometry
from deepshadows.verbs.training_set import labels_of

DEFAULT_THRESHOLD = 0.5
MEASURES = ("accuracy", "completeness", "purity", "auc", "ece")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is judged: rows, the threshold it states itself, and what else is to be told."""

    rows: Judged
    threshold: float
    prevalence: float
    figures: dict[str, Any]
    text: tuple[str, ...]


def run(settings: Evaluate) -> Summary:
    """Judge scores against labels.

    Rows without a score (fatal flags, LSBGs that were never detected) are not selected: such an LSBG is lost for the
    completeness; AUC and calibration error are those of the scored rows. With a prevalence, probabilities are
    corrected to it before the threshold is applied.

    Raises
    ------
    InputError
        There are no labels or no scores, or the wanted purity cannot be reached.
    """
    started = time.monotonic()
    subject = _of_checkpoint(settings) if settings.checkpoint else _of_catalogue(settings)
    rows = subject.rows
    if settings.prevalence is not None:
        rows = Judged(
            probabilities=at_prevalence(rows.probabilities, settings.prevalence, subject.prevalence),
            labels=rows.labels,
        )
    threshold = settings.threshold if settings.threshold is not None else subject.threshold
    if settings.purity is not None:
        threshold = threshold_for_purity(rows, settings.purity, settings.prevalence)
    figures = judge(rows, threshold)
    lines = [_line(name, figures) for name in MEASURES]
    counts = ", ".join(f"{figures[name]} {name.upper()}" for name in ("tp", "fp", "fn", "tn"))
    return Summary(
        verb="evaluate",
        output="",
        figures={**figures, **subject.figures},
        text=(
            *subject.text,
            f"{figures['n']} rows judged at p_lsbg >= {threshold:.4f}: {counts}",
            *lines,
            f"({time.monotonic() - started:.1f} s)",
        ),
    )


def _line(name: str, figures: dict[str, float | int | None]) -> str:
    value, low, high = figures[name], figures[f"{name}_lo"], figures[f"{name}_hi"]
    if value is None:
        return f"{name:>12}  not defined"
    return f"{name:>12}  {value:.4f}" + (f"  ({low:.4f} to {high:.4f})" if low is not None else "")


def _of_checkpoint(settings: Evaluate) -> _Subject:
    """Score the labelled cut-outs."""
    assert settings.checkpoint is not None and settings.cutouts is not None
    threads = len(os.sched_getaffinity(0))
    scorer = load_scorer(storage.normalise(settings.checkpoint), precision=settings.precision, threads=threads)
    cutouts = read_cutouts(storage.normalise(settings.cutouts), card_geometry(scorer.card))
    labels = labels_of(cutouts, settings.cutouts)
    labelled = np.flatnonzero(labels >= 0)
    started = time.monotonic()
    probabilities = _scored(scorer, cutouts.take(labelled))
    seconds = time.monotonic() - started
    unscored = int(np.isnan(probabilities).sum())
    text = [f"checkpoint {scorer.card.name}, {scorer.engine}, {len(labelled) / max(seconds, 1e-9):.0f} images/s"]
    if len(labelled) < len(labels):
        text.append(f"{len(labels) - len(labelled)} rows have no label and are passed over")
    if unscored:
        text.append(f"{unscored} rows cannot be scored and count as not selected: {_reasons(cutouts)}")
    return _Subject(
        rows=Judged(probabilities=probabilities, labels=labels[labelled]),
        threshold=scorer.card.threshold,
        prevalence=scorer.card.prevalence,
        figures={
            "engine": scorer.engine,
            "weights_sha256": scorer.card.weights_sha256,
            "rows_unscored": unscored,
            "images_per_s": len(labelled) / max(seconds, 1e-9),
        },
        text=tuple(text),
    )


def _scored(scorer: Scorer, cutouts: Cutouts) -> NDArray[np.float64]:
    """Probabilities at the card's prevalence, NaN where a fatal flag forbids a score, shape (N,)."""
    usable = ~schema.is_fatal(cutouts.flags)
    probabilities = np.full(len(cutouts), np.nan)
    probabilities[usable] = scorer.card.probabilities(scorer.logits(cutouts.images[usable]))
    return probabilities


def _reasons(cutouts: Cutouts) -> str:
    counts = schema.count_flags(cutouts.flags & schema.FATAL_BITS)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _of_catalogue(settings: Evaluate) -> _Subject:
    """Match catalogue rows with the LSBGs of the truth, by position."""
    assert settings.catalog is not None and settings.truth is not None
    table = read_current(settings.catalog, ["ra", "dec", "p_lsbg"])
    truth = read_table(storage.normalise(settings.truth))
    labels = label_by_truth(table["ra"].to_numpy(), table["dec"].to_numpy(), truth, settings.radius_arcsec)
    lsbgs = int(pc.sum(pc.equal(truth["label"], LSBG)).as_py() or 0)
    if not lsbgs:
        raise InputError(f"{settings.truth}: no row has label 1, so there is no LSBG to find")
    probabilities = _column(table["p_lsbg"])
    judged = labels >= 0
    found = int(np.count_nonzero(labels == LSBG))
    lost = lsbgs - found
    pieces = len(labels) - int(np.count_nonzero(judged))
    rows = Judged(
        probabilities=np.concatenate([probabilities[judged], np.full(lost, np.nan)]),
        labels=np.concatenate([labels[judged], np.ones(lost, np.int8)]),
    )
    return _Subject(
        rows=rows,
        threshold=DEFAULT_THRESHOLD,
        prevalence=0.5,
        figures={
            "rows": len(labels),
            "rows_unscored": int(np.isnan(probabilities).sum()),
            "truth_lsbg": lsbgs,
            "truth_lsbg_detected": found,
            "rows_passed_over": pieces,
        },
        text=(
            f"{len(labels)} catalogue rows; {found} of {lsbgs} true LSBGs have a detection within "
            f"{settings.radius_arcsec:g} arcsec, the other {lost} count as lost",
            *([f"{pieces} rows are further detections of the same LSBGs and are passed over"] if pieces else []),
        ),
    )


def _column(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Nulls as NaN."""
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
    return values
