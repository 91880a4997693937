"""Label noise: how many wrong labels the network bears, spread evenly or all in one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepshadows.outcomes import InputError
from deepshadows.sky.matching import ARTIFACT, LSBG
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.findings import MEASURES, Row, Section, Table, judged_logits, numbers
from deepshadows.verbs.paper.samples import Rows
from deepshadows.verbs.paper.scale import A_THIRD
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import NetworkJob, Outcome

Labels = NDArray[np.int8]

UNIFORM = "uniform"
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


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """A training on labels of which a share is wrong: `uniform`, or of a kind of `TARGETED`; None: right labels."""

    kind: str | None
    share: float
    job: NetworkJob


def label_noise(study: Study) -> Section:
    """Train on labels of which a share is wrong, judge on right ones."""
    trainings = [*uniform(study), *targeted(study)]
    outcomes = study.trainer.run(study.first, [training.job for training in trainings], "label noise")
    truth = study.first.labels
    rows = [_row(training.job, outcome, truth) for training, outcome in zip(trainings, outcomes, strict=True)]
    flips = {training.job.name: int(np.count_nonzero(training.job.labels != truth)) for training in trainings}
    count = 1 + len(study.scale.uniform)
    return Section(
        name="label_noise",
        title="Wrong labels in the training rows",
        tables=(
            Table(title="Flipped at random", rows=tuple(rows[:count])),
            Table(title="Flipped in one class only", rows=tuple(rows[count:])),
        ),
        pictures=(figures.noise(_curves(trainings, rows), right=rows[0], fewer_epochs=rows[count]),),
        notes=(
            "Shares are of all training labels, as in the paper (300, 1,500, 3,000 and 10,000 of 30,000); validation "
            "and test labels stay right.",
            "Labels flipped: " + ", ".join(f"{name}: {number}" for name, number in flips.items()),
        ),
        details={"flipped": flips},
        training_seconds=sum(outcome.seconds for outcome in outcomes),
    )


def _row(job: NetworkJob, outcome: Outcome, truth: Labels) -> Row:
    return job.row(numbers("label_noise", job.name, judged_logits(outcome.scores, truth[job.test]), MEASURES))


def _curves(trainings: Sequence[Noisy], rows: Sequence[Row]) -> list[figures.Curve]:
    """The rows of each kind of noise at their shares."""
    curves = []
    for kind in (UNIFORM, *TARGETED):
        found = [(training.share, row) for training, row in zip(trainings, rows, strict=True) if training.kind == kind]
        curves.append(figures.Curve(kind=kind, shares=[share for share, _ in found], rows=[row for _, row in found]))
    return curves


def uniform(study: Study) -> list[Noisy]:
    """Right labels, which is the training that all experiments share, then each share."""
    base = replace(study.binary_job(study.seed), name="right labels")
    return [
        Noisy(kind=None, share=0.0, job=base),
        *(_noisy(study, UNIFORM, share, None, base.recipe.epochs) for share in study.scale.uniform),
    ]


def targeted(study: Study) -> list[Noisy]:
    """Right labels with as many epochs as these have, then each share of each kind."""
    epochs = study.scale.targeted_epochs
    right = _noisy(study, UNIFORM, 0.0, None, epochs)
    return [
        Noisy(kind=None, share=0.0, job=replace(right.job, name="right labels, fewer epochs")),
        *(
            _noisy(study, kind, share, only, epochs)
            for kind, only in TARGETED.items()
            for share in study.scale.targeted
        ),
    ]


def _noisy(study: Study, kind: str, share: float, only: int | None, epochs: int) -> Noisy:
    base = study.binary_job(study.seed)
    wrong = flipped(base.labels, base.train, round(share * len(base.train)), study.seed, only)
    recipe = base.recipe.model_copy(update={"epochs": epochs})
    name = f"{kind} {33 if share == A_THIRD else 100 * share:.12g} %"
    return Noisy(kind=kind, share=share, job=replace(base, name=name, labels=wrong, recipe=recipe, keep_weights=False))
