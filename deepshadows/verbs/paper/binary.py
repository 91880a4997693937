"""The binary task: the network beside SVM and random forest on the same objects, and the split study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from deepshadows.model.baselines import GRID_FOLDS, Kind
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.findings import MEASURES, Number, Row, Section, Table, judged, judged_logits, numbers
from deepshadows.verbs.paper.published import published
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import FeatureJob, Job

CLASSIFIERS: Mapping[str, Kind] = {"SVM": "svm", "random forest": "random_forest"}


def baselines(study: Study) -> Section:
    """CNN, SVM and random forest trained and judged on the same rows."""
    sample, parts = study.first, study.parts
    jobs: list[Job] = [study.binary_job(study.seed)]
    if sample.features is not None:
        jobs += [
            FeatureJob(
                name=name,
                kind=kind,
                values=sample.features.values,
                labels=sample.labels,
                train=parts.train,
                test=parts.test,
                seed=study.seed,
                search_on=parts.validation,
            )
            for name, kind in CLASSIFIERS.items()
        ]
    cnn, *others = study.trainer.run(sample, jobs, "baselines")
    truth = sample.labels[parts.test]
    scores = {name: other.scores.astype(np.float64) for name, other in zip(CLASSIFIERS, others, strict=False)}
    scores["CNN"] = expit(cnn.scores.astype(np.float64))
    found = {name: judged(score, truth) for name, score in scores.items()}
    rows = tuple(
        Row(
            name=name,
            n_train=len(parts.train),
            n_test=len(truth),
            epochs=study.scale.recipe.epochs if name == "CNN" else None,
            seed=study.seed,
            numbers=numbers("baselines", name, result),
        )
        for name, result in found.items()
    )
    chosen = {job.name: other.details["parameters"] for job, other in zip(jobs[1:], others, strict=True)}
    notes = [
        f"{np.mean(truth):.0%} of the test rows are LSBGs; purity is at that share.",
        *(f"{name}, by grid search: {spoken(values)}." for name, values in chosen.items()),
    ]
    if sample.features is None:
        notes.append("SVM and random forest are skipped: no _features.parquet lies beside the cut-outs.")
    else:
        count = len(sample.features.names)
        notes.append(f"{count} features; parameters are searched in {GRID_FOLDS} folds of the validation rows.")
    return Section(
        name="baselines",
        title="Network, SVM and random forest on the same objects",
        tables=(Table(title="The binary task", rows=rows),),
        pictures=(figures.roc(scores, truth), figures.confusions(found)),
        notes=tuple(notes),
        details={"parameters": chosen},
        training_seconds=sum(outcome.seconds for outcome in (cnn, *others)),
    )


def spoken(parameters: Mapping[str, Any]) -> str:
    """Parameters without the steps of the pipeline that they belong to."""
    return ", ".join(f"{name.rpartition('__')[2]} {value:g}" for name, value in parameters.items())


def splits(study: Study) -> Section:
    """The same training on other splits: how much luck is in the numbers."""
    jobs = [study.binary_job(seed) for seed in study.scale.seeds]
    outcomes = study.trainer.run(study.first, jobs, "split study")
    rows = []
    for seed, job, outcome in zip(study.scale.seeds, jobs, outcomes, strict=True):
        found = judged_logits(outcome.scores, study.first.labels[job.test])
        rows.append(job.row(numbers("splits", f"seed {seed}", found, MEASURES), f"seed {seed}"))
    return Section(
        name="splits",
        title="Six splits",
        tables=(
            Table(title="Each seed", rows=tuple(rows)),
            Table(title="Over the seeds", rows=(_over_seeds(rows),), interval="smallest and largest of the seeds"),
        ),
        pictures=(figures.seeds(rows),),
        notes=("The seed decides both the split and the initial weights.",),
        training_seconds=sum(outcome.seconds for outcome in outcomes),
    )


def _over_seeds(rows: list[Row]) -> Row:
    """Mean, smallest and largest of each measure."""
    found = []
    for measure in MEASURES:
        values = [value for row in rows if (value := row[measure].ours) is not None]
        paper = published("splits", "all seeds", measure)
        found.append(
            Number(
                measure=measure,
                ours=float(np.mean(values)) if values else None,
                low=min(values, default=None),
                high=max(values, default=None),
                paper=paper.value,
                paper_low=paper.low,
                paper_high=paper.high,
            )
        )
    mean = int(np.mean([row.n_train for row in rows])), int(np.mean([row.n_test for row in rows]))
    return Row(
        name="all seeds",
        n_train=mean[0],
        n_test=mean[1],
        epochs=rows[0].epochs,
        seed=None,
        numbers=tuple(found),
    )
