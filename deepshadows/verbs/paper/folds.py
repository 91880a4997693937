"""Scores of every row by classifiers that never saw it, one job a fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshadows.model.baselines import Kind, stratified
from deepshadows.verbs.paper.trainings import FeatureJob, Trainer


def out_of_fold(
    trainer: Trainer,
    kind: Kind,
    values: NDArray[np.float64],
    labels: NDArray[np.int8],
    *,
    folds: int,
    seed: int,
    searched: bool,
) -> tuple[NDArray[np.float64], list[Mapping[str, Any]], float]:
    """Probabilities (N,), the parameters of each fold, and the seconds of all.

    Parameters
    ----------
    values : float64 (N, F)
    labels : int8 (N,)
        1 LSBG, 0 artifact.
    searched : bool
        Search parameters anew within the training rows of each fold, so that no row has a part in choosing those that
        it is judged by; else the paper's.

    Raises
    ------
    InputError
        A class has fewer rows than there are folds.
    """
    jobs = [
        FeatureJob(
            name=f"{kind}, fold {number}",
            kind=kind,
            values=values,
            labels=labels,
            train=seen,
            test=unseen,
            seed=seed,
            search_on=seen if searched else None,
        )
        for number, (seen, unseen) in enumerate(stratified(labels, folds, seed).split(values, labels), start=1)
    ]
    outcomes = trainer.run(None, jobs, f"{kind} in {folds} folds")
    scores = np.empty(len(labels))
    for job, outcome in zip(jobs, outcomes, strict=True):
        scores[job.test] = outcome.scores
    parameters = [outcome.details["parameters"] for outcome in outcomes]
    return scores, parameters, sum(outcome.seconds for outcome in outcomes)
