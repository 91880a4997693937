"""Label noise: how many wrong labels the network bears, spread evenly or all in one class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepshadows.outcomes import InputError
from deepshadows.sky.matching import ARTIFACT, LSBG
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.findings import MEASURES, Section, Table, judged_logits, numbers
from deepshadows.verbs.paper.samples import Rows
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import NetworkJob

Labels = NDArray[np.int8]

TARGETED = {"LSBG to artifact": LSBG, "artifact to LSBG": ARTIFACT}
"""Kinds of targeted noise, with the class whose labels are changed."""


def flipped(labels: Labels, rows: Rows, count: int, seed: int, only: int | None = None) -> Labels:
    """Labels of which exactly `count` are wrong.

    Parameters
    ----------
    labels : int8 (N,)
        0 and 1.
    rows : int (T,)
        Only these are changed.
    only : int, optional
        Change labels of this class only.

    Raises
    ------
    InputError
        There are fewer than `count` rows to choose from.
    """
    choice = rows if only is None else rows[labels[rows] == only]
    if count > len(choice):
        raise InputError(f"{count} labels are to be flipped, and there are {len(choice)} to choose from")
    wrong = labels.copy()
    chosen = np.random.default_rng(seed).choice(choice, count, replace=False)
    wrong[chosen] = 1 - wrong[chosen]
    return wrong


def label_noise(study: Study) -> Section:
    """Train on labels of which a share is wrong, judge on right ones."""
    jobs = {job.name: job for job in (*_uniform(study), *_targeted(study))}
    outcomes = study.trainer.run(study.first, list(jobs.values()), "label noise")
    truth = study.first.labels
    rows = {
        name: job.row(numbers("label_noise", name, judged_logits(outcome.scores, truth[job.test]), MEASURES))
        for (name, job), outcome in zip(jobs.items(), outcomes, strict=True)
    }
    flips = {name: int(np.count_nonzero(job.labels != truth)) for name, job in jobs.items()}
    uniform = [row for row in rows.values() if not _is_targeted(row.name)]
    targeted = [row for row in rows.values() if _is_targeted(row.name)]
    return Section(
        name="label_noise",
        title="Wrong labels in the training rows",
        tables=(
            Table(title="Flipped at random", rows=tuple(uniform)),
            Table(title="Flipped in one class only", rows=tuple(targeted)),
        ),
        pictures=(figures.noise(list(rows.values())),),
        notes=(
            "Shares are of all training labels, as in the paper (300, 1,500, 3,000 and 10,000 of 30,000); validation "
            "and test labels stay right.",
            "Labels flipped: " + ", ".join(f"{name}: {count}" for name, count in flips.items()),
        ),
        details={"flipped": flips},
        training_seconds=sum(outcome.seconds for outcome in outcomes),
    )


def _is_targeted(name: str) -> bool:
    return not name.startswith("uniform") and name != "right labels"


def _uniform(study: Study) -> list[NetworkJob]:
    """Right labels, which is the training that all experiments share, then each share."""
    base = study.binary_job(study.seed)
    return [
        replace(base, name="right labels"),
        *(_job(study, f"uniform {_percent(share)}", share, None) for share in study.scale.uniform),
    ]


def _targeted(study: Study) -> list[NetworkJob]:
    epochs = study.scale.targeted_epochs
    return [
        _job(study, "right labels, fewer epochs", 0.0, None, epochs),
        *(
            _job(study, f"{kind} {_percent(share)}", share, only, epochs)
            for kind, only in TARGETED.items()
            for share in study.scale.targeted
        ),
    ]


def _job(study: Study, name: str, share: float, only: int | None, epochs: int | None = None) -> NetworkJob:
    base = study.binary_job(study.seed)
    wrong = flipped(base.labels, base.train, round(share * len(base.train)), study.seed, only)
    recipe = base.recipe.model_copy(update={"epochs": epochs or base.recipe.epochs})
    return replace(base, name=name, labels=wrong, recipe=recipe, keep_weights=False)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
