"""`evaluate`: a checkpoint on labelled cut-outs, or a catalogue against a truth table. Runs in this process."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np

from deepshadows import schema, storage
from deepshadows.catalog import versions
from deepshadows.model import shipped
from deepshadows.model.metrics import Judged
from deepshadows.model.scorer import Scorer, Scores, load_scorer
from deepshadows.outcomes import Summary
from deepshadows.settings import Evaluate
from deepshadows.sky.shards import Cutouts, read_cutouts
from deepshadows.verbs.against_truth import AREA_ORDER, COLUMNS, Compared, Comparison, read_truth, subject_of
from deepshadows.verbs.classify_plan import card_geometry
from deepshadows.verbs.judgement import Subject, judgement
from deepshadows.verbs.review import charts
from deepshadows.verbs.review.tables import Table
from deepshadows.verbs.training_set import labels_of


def run(settings: Evaluate) -> Summary:
    """Judge scores against labels: see `judgement`.

    Raises
    ------
    InputError
        There are no labels or no scores, the wanted purity or completeness cannot be reached, or truth and catalogue
        do not overlap.
    """
    started = time.monotonic()
    summary = judgement(settings, _of_checkpoint(settings)) if settings.checkpoint else _of_catalogue(settings)
    return replace(summary, text=(*summary.text, f"({time.monotonic() - started:.1f} s)"))


def _of_catalogue(settings: Evaluate) -> Summary:
    """Match rows with the LSBGs of the truth; only partitions near the truth are read."""
    assert settings.catalog is not None and settings.truth is not None
    table = Table(versions.find(storage.normalise(settings.catalog), None))
    truth = read_truth(settings.truth)
    comparison = Comparison(truth, settings.radius_arcsec)
    near = table.near(truth.area, AREA_ORDER)
    for rows in table.rows(near, COLUMNS):
        comparison.add(rows)
    compared = comparison.compare()
    summary = judgement(settings, subject_of(compared, settings.radius_arcsec))
    return _with_tables(settings, summary, compared, f"{len(near)} of {len(table.partitions)} partitions were read")


def _with_tables(settings: Evaluate, summary: Summary, compared: Compared, read: str) -> Summary:
    """Add completeness by what LSBGs look like, in figures, text and picture."""
    threshold = float(summary.figures["threshold"])
    tables = compared.tables(threshold)
    told = []
    if all(value is None for value in (settings.threshold, settings.purity, settings.completeness)):
        told.append("threshold 0.5 as none is given; choose one with --threshold, --purity or --completeness")
    if settings.output is None:
        told.append("completeness as a figure: give --output FILE.png")
    elif (picture := charts.completeness(tables, threshold)) is None:
        told.append(f"nothing to draw: {settings.output} was not written")
    else:
        storage.write(storage.normalise(settings.output), picture.png)
        told.append(f"figure: {settings.output}")
    figures = {f"completeness_by_{by.column}": [one.record() for one in bins] for by, bins in tables.items()}
    return replace(
        summary,
        output=storage.normalise(settings.output) if settings.output and tables else "",
        figures={**summary.figures, **figures},
        text=(read, *summary.text, *compared.lines(threshold), *told),
    )


def _of_checkpoint(settings: Evaluate) -> Subject:
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
    return Subject(
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
