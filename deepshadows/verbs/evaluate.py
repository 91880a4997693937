"""`evaluate`: a checkpoint on labelled cut-outs, or a catalogue against a truth table. Runs in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepshadows import schema, storage
from deepshadows.catalog.collection import read_current
from deepshadows.model import shipped
from deepshadows.model.calibration import at_prevalence
from deepshadows.model.metrics import MEASURES, Judged, auc, judge
from deepshadows.model.scorer import Scorer, Scores, load_scorer
from deepshadows.model.thresholds import choose_threshold
from deepshadows.outcomes import InputError, Summary
from deepshadows.settings import Evaluate
from deepshadows.sky.detections import read_table
from deepshadows.sky.matching import LSBG, label_by_truth
from deepshadows.sky.shards import Cutouts, read_cutouts
from deepshadows.verbs.classify_plan import card_geometry
from deepshadows.verbs.training_set import labels_of

DEFAULT_THRESHOLD = 0.5
AT_PREVALENCE = ("purity_at_prevalence", "accuracy_at_prevalence")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is judged: rows, the threshold it states itself, and what else is to be told.

    `errors` is p_lsbg_err of the rows, NaN where there is none; `out_of_domain` counts the rows with that flag.
    """

    rows: Judged
    errors: NDArray[np.float64]
    out_of_domain: int
    threshold: float
    prevalence: float
    figures: dict[str, Any]
    text: tuple[str, ...]


def run(settings: Evaluate) -> Summary:
    """Judge scores against labels.

    Rows without a score (fatal flags, LSBGs that were never detected) are not selected: such an LSBG is lost for the
    completeness; AUC and calibration error are those of the scored rows. With a prevalence, probabilities are
    corrected to it before the card's threshold is applied; one that is given is a threshold on p_lsbg as it is stored,
    with or without a prevalence. Purity, accuracy and calibration error are told for a survey
    of that share of LSBGs as well, whatever the share of the labelled rows.

    Raises
    ------
    InputError
        There are no labels or no scores, or the wanted purity or completeness cannot be reached.
    """
    started = time.monotonic()
    subject = _of_checkpoint(settings) if settings.checkpoint else _of_catalogue(settings)
    rows = subject.rows
    if settings.prevalence is not None:
        rows = Judged(
            probabilities=at_prevalence(rows.probabilities, settings.prevalence, subject.prevalence),
            labels=rows.labels,
        )
    chosen = _chosen(settings, rows)
    threshold = _given(settings, subject, rows)
    if (reached := chosen.get("threshold")) is not None:
        threshold = reached
    figures = {
        **judge(rows, threshold, prevalence=settings.prevalence, calibrated_at=subject.prevalence),
        **chosen,
        **_on_p_lsbg(settings, subject, rows, {"threshold": threshold, **chosen}),
    }
    doubts = _doubts(subject, threshold, rows)
    counts = ", ".join(f"{figures[name]} {name.upper()}" for name in ("tp", "fp", "fn", "tn"))
    names = [*MEASURES, *(AT_PREVALENCE if settings.prevalence is not None else ())]
    return Summary(
        verb="evaluate",
        output="",
        figures={**figures, "prevalence": settings.prevalence, **doubts, **subject.figures},
        text=(
            *subject.text,
            *_choice_lines(settings, chosen),
            _judged_line(settings, figures, counts),
            *_lines(names, figures),
            *_doubt_lines(doubts),
            f"({time.monotonic() - started:.1f} s)",
        ),
    )


def _given(settings: Evaluate, subject: _Subject, rows: Judged) -> float:
    """The threshold on the probabilities that are judged: --threshold is one on p_lsbg as it is stored.

    One that is the p_lsbg of a row becomes what the correction made of that row, to the last bit.
    """
    if settings.threshold is None:
        return subject.threshold
    if settings.prevalence is None:
        return settings.threshold
    corrected = rows.probabilities[subject.rows.probabilities == settings.threshold]
    if not len(corrected):
        corrected = at_prevalence(np.array([settings.threshold]), settings.prevalence, subject.prevalence)
    return float(corrected.min())


def _on_p_lsbg(
    settings: Evaluate, subject: _Subject, rows: Judged, found: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Thresholds on corrected probabilities under names of their own, `threshold` as one on p_lsbg as it is stored.

    One that is the probability of a row is told as that row has it stored: the way back through the odds may end a
    rounding error higher, and lose the row.
    """
    if settings.prevalence is None:
        return {}
    told: dict[str, float | None] = {}
    for end in ("", "_lo", "_hi"):
        if (corrected := found.get(f"threshold{end}")) is not None:
            stored = subject.rows.probabilities[rows.probabilities == corrected]
            if not len(stored):
                stored = at_prevalence(np.array([corrected]), subject.prevalence, settings.prevalence)
            told[f"threshold_at_prevalence{end}"] = corrected
            told[f"threshold{end}"] = float(stored.min())
    if settings.threshold is not None:
        told["threshold"] = settings.threshold
    return told


def _judged_line(settings: Evaluate, figures: Mapping[str, float | int | None], counts: str) -> str:
    if settings.prevalence is None:
        return f"{figures['n']} rows judged at p_lsbg >= {figures['threshold']:.4f}: {counts}"
    return (
        f"{figures['n']} rows judged at a probability of {figures['threshold_at_prevalence']:.4f} for a prevalence of "
        f"{settings.prevalence:g}, which is p_lsbg >= {figures['threshold']:.4f}: {counts}"
    )


def _chosen(settings: Evaluate, rows: Judged) -> dict[str, float | None]:
    """The threshold for the wanted purity or completeness with its intervals; empty where none is wanted."""
    if settings.purity is None and settings.completeness is None:
        return {}
    return choose_threshold(
        rows, purity=settings.purity, completeness=settings.completeness, prevalence=settings.prevalence
    )


def _choice_lines(settings: Evaluate, chosen: dict[str, float | None]) -> list[str]:
    if not chosen:
        return []
    wanted = f"purity of {settings.purity:g}" if settings.purity else f"completeness of {settings.completeness:g}"
    where = f" at a prevalence of {settings.prevalence:g}" if settings.prevalence else ""
    unreached = f"; {chosen['unreached']:.0%} of the resamples do not reach it" if chosen["unreached"] else ""
    return [
        f"threshold for a {wanted}{where}{unreached}; purity and completeness on rows without part in the choice:",
        *_lines(("threshold", "unseen_purity", "unseen_completeness"), chosen),
    ]


def _doubts(subject: _Subject, threshold: float, rows: Judged) -> dict[str, Any]:
    """How many rows are out of the domain, and how well p_lsbg_err tells wrong decisions from right ones."""
    known = np.isfinite(subject.errors)
    figures: dict[str, Any] = {"rows_out_of_domain": subject.out_of_domain, "err_median": None, "err_auc": None}
    if known.any():
        wrong = ((rows.probabilities >= threshold) != (rows.labels == 1))[known].astype(np.int8)
        figures["err_median"] = float(np.median(subject.errors[known]))
        figures["err_auc"] = auc(Judged(probabilities=subject.errors[known], labels=wrong))
    return figures


def _doubt_lines(doubts: dict[str, Any]) -> list[str]:
    lines = [f"{doubts['rows_out_of_domain']} rows are unlike the training images (OUT_OF_DOMAIN)"]
    if doubts["err_auc"] is not None:
        lines.append(
            f"p_lsbg_err: median {doubts['err_median']:.4f}; a wrong decision has a larger one than a right one with "
            f"chance {doubts['err_auc']:.3f}"
        )
    return lines if doubts["rows_out_of_domain"] else lines[1:]


def _lines(names: Sequence[str], figures: Mapping[str, float | int | None]) -> list[str]:
    """One line a measure, with its interval."""
    width = max(12, *map(len, names))
    lines = []
    for name in names:
        value, low, high = figures[name], figures[f"{name}_lo"], figures[f"{name}_hi"]
        shown = "not defined" if value is None else f"{value:.4f}"
        lines.append(f"{name:>{width}}  {shown}" + (f"  ({low:.4f} to {high:.4f})" if low is not None else ""))
    return lines


def _of_checkpoint(settings: Evaluate) -> _Subject:
    """Score the labelled cut-outs."""
    assert settings.checkpoint is not None and settings.cutouts is not None
    threads = len(os.sched_getaffinity(0))
    scorer = load_scorer(shipped.normalise(settings.checkpoint), precision=settings.precision, threads=threads)
    cutouts = read_cutouts(storage.normalise(settings.cutouts), card_geometry(scorer.card))
    labels = labels_of(cutouts, settings.cutouts)
    labelled = np.flatnonzero(labels >= 0)
    started = time.monotonic()
    scores = _scored(scorer, cutouts.take(labelled))
    seconds = time.monotonic() - started
    unscored = int(np.isnan(scores.p_lsbg).sum())
    text = [f"checkpoint {scorer.card.name}, {scorer.engine}, {len(labelled) / max(seconds, 1e-9):.0f} images/s"]
    if len(labelled) < len(labels):
        text.append(f"{len(labels) - len(labelled)} rows have no label and are passed over")
    if unscored:
        reasons = _reasons(cutouts.take(labelled))
        text.append(f"{unscored} rows cannot be scored and count as not selected: {reasons}")
    return _Subject(
        rows=Judged(probabilities=scores.p_lsbg.astype(np.float64), labels=labels[labelled]),
        errors=scores.p_lsbg_err.astype(np.float64),
        out_of_domain=int(np.count_nonzero(scores.out_of_domain)),
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


def _scored(scorer: Scorer, cutouts: Cutouts) -> Scores:
    """Scores at the card's prevalence, NaN where a fatal flag forbids one."""
    usable = ~schema.is_fatal(cutouts.flags)
    return scorer.score(cutouts.images[usable]).placed(usable, fill=np.nan)


def _reasons(cutouts: Cutouts) -> str:
    counts = schema.count_flags(cutouts.flags & schema.FATAL_BITS)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _of_catalogue(settings: Evaluate) -> _Subject:
    """Match catalogue rows with the LSBGs of the truth, by position."""
    assert settings.catalog is not None and settings.truth is not None
    table = read_current(settings.catalog, ["ra", "dec", "p_lsbg", "p_lsbg_err", "flags"])
    truth = read_table(storage.normalise(settings.truth))
    labels = label_by_truth(table["ra"].to_numpy(), table["dec"].to_numpy(), truth, settings.radius_arcsec)
    lsbgs = int(pc.sum(pc.equal(truth["label"], LSBG)).as_py() or 0)
    if not lsbgs:
        raise InputError(f"{settings.truth}: no row has label 1, so there is no LSBG to find")
    probabilities, errors = _column(table["p_lsbg"]), _column(table["p_lsbg_err"])
    judged = labels >= 0
    foreign = (table["flags"].to_numpy()[judged] & schema.Flag.OUT_OF_DOMAIN.bit) != 0
    found = int(np.count_nonzero(labels == LSBG))
    lost = lsbgs - found
    pieces = len(labels) - int(np.count_nonzero(judged))
    rows = Judged(
        probabilities=np.concatenate([probabilities[judged], np.full(lost, np.nan)]),
        labels=np.concatenate([labels[judged], np.ones(lost, np.int8)]),
    )
    return _Subject(
        rows=rows,
        errors=np.concatenate([errors[judged], np.full(lost, np.nan)]),
        out_of_domain=int(np.count_nonzero(foreign)),
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
