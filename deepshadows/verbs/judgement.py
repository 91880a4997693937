"""Judges scores whose truth is known, and says so: measures, intervals, the threshold. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshadows.model.calibration import at_prevalence
from deepshadows.model.completeness import wilson
from deepshadows.model.metrics import MEASURES, RESAMPLES, Judged, auc, judge
from deepshadows.model.thresholds import choose_threshold
from deepshadows.outcomes import Summary
from deepshadows.settings import Evaluate

AT_PREVALENCE = ("purity_at_prevalence", "accuracy_at_prevalence")
DRAWN_ROWS, FEWEST_RESAMPLES = 300_000_000, 50
"""Rows that all bootstrap resamples draw together, at most; more rows have fewer resamples, and need fewer."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is judged: rows, the threshold it states itself, and what else is to be told.

    `errors` is p_lsbg_err of the rows, NaN where there is none; `out_of_domain` counts the rows with that flag. With
    `binomial`, the intervals of completeness, purity and accuracy are Wilson's; else bootstrap, as the others.
    """

    rows: Judged
    errors: NDArray[np.float64]
    out_of_domain: int
    threshold: float
    prevalence: float
    figures: dict[str, Any]
    text: tuple[str, ...]
    binomial: bool = False


def judgement(settings: Evaluate, subject: Subject) -> Summary:
    """Judge scores against labels.

    Rows without a score (fatal flags, LSBGs that were never detected) are not selected: such an LSBG is lost for the
    completeness; AUC and calibration error are those of the scored rows. With a prevalence, probabilities are
    corrected to it before the card's threshold is applied; one that is given is a threshold on p_lsbg as it is stored,
    with or without a prevalence. Purity, accuracy and calibration error are told for a survey with that share of LSBGs
    among its detections as well, whatever the share of the labelled rows.

    Raises
    ------
    InputError
        There are no labels or no scores, or the wanted purity or completeness cannot be reached.
    """
    rows = subject.rows
    if settings.prevalence is not None:
        rows = replace(rows, probabilities=at_prevalence(rows.probabilities, settings.prevalence, subject.prevalence))
    chosen = _chosen(settings, rows)
    threshold = _given(settings, subject, rows)
    if (reached := chosen.get("threshold")) is not None:
        threshold = reached
    figures = {
        **_measures(settings, subject, rows, threshold),
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
        ),
    )


def _measures(settings: Evaluate, subject: Subject, rows: Judged, threshold: float) -> dict[str, float | int | None]:
    resamples = int(np.clip(DRAWN_ROWS // len(rows.labels), FEWEST_RESAMPLES, RESAMPLES))
    found = judge(
        rows, threshold, prevalence=settings.prevalence, calibrated_at=subject.prevalence, resamples=resamples
    )
    tn, fp, fn, tp = (int(found[name] or 0) for name in ("tn", "fp", "fn", "tp"))
    shares = {"completeness": (tp, tp + fn), "purity": (tp, tp + fp), "accuracy": (tp + tn, tn + fp + fn + tp)}
    for name, (part, of) in shares.items():
        if subject.binomial and of:
            found[f"{name}_lo"], found[f"{name}_hi"] = wilson(part, of)
    return found


def _given(settings: Evaluate, subject: Subject, rows: Judged) -> float:
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
    settings: Evaluate, subject: Subject, rows: Judged, found: Mapping[str, float | None]
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


def _doubts(subject: Subject, threshold: float, rows: Judged) -> dict[str, Any]:
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
