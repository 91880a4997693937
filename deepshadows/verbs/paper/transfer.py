"""Transfer to a second survey: the network before, and after training on some examples of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from deepshadows.model.network import in_batches
from deepshadows.model.split import hold_out
from deepshadows.outcomes import InputError
from deepshadows.sky.matching import ARTIFACT, LSBG
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.findings import Section, Table, judged_logits, numbers
from deepshadows.verbs.paper.samples import Rows, Sample, Split, check_both
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import NetworkJob, network

WATCHED_ROWS = 64
"""Test rows whose loss is logged while fine-tuning; nothing is chosen by it."""


def pool_and_test(sample: Sample, test_share: float, split: Split, seed: int) -> tuple[Rows, Rows]:
    """Rows that may be trained on, and rows to judge by; blocks of sky stay whole unless `split` is random."""
    every = np.arange(len(sample))
    if split == "random":
        pool, test = train_test_split(every, test_size=test_share, random_state=seed)
        return np.sort(pool), np.sort(test)
    in_test = hold_out(sample.blocks, test_share, seed)
    return every[~in_test], every[in_test]


def examples(labels: NDArray[np.int8], pool: Rows, count: int, seed: int) -> Rows:
    """`count` rows of the pool, half of each class as far as it goes; fewer are always among more.

    Raises
    ------
    InputError
        The pool is smaller than `count`.
    """
    if count > len(pool):
        raise InputError(f"{count} examples of the second survey are wanted, its pool has {len(pool)}")
    order = np.random.default_rng(seed).permutation(pool)
    of_class = [order[labels[order] == label] for label in (LSBG, ARTIFACT)]
    fewer = min(map(len, of_class))
    in_turn = np.stack([part[:fewer] for part in of_class], axis=1).ravel()
    rest = np.concatenate([part[fewer:] for part in of_class])
    return np.concatenate([in_turn, rest])[:count]


def transfer(study: Study) -> Section:
    """Judge the network on the second survey as it is, then after fine-tuning on samples of growing size."""
    sample, scale = study.second, study.scale
    pool, test = pool_and_test(sample, scale.transfer_test, study.split, study.seed)
    for what, part in (("pool", pool), ("test part", test)):
        check_both(sample.labels[part], f"{sample.origin}: the {what}")
    weights = study.binary.weights
    assert weights is not None, "the study's own seed keeps its weights"
    sizes = sorted({min(size, len(pool)) for size in scale.transfer_sizes})
    jobs = [_job(study, pool, test, size, weights) for size in sizes]
    jobs.append(_job(study, pool, test, sizes[-1], None))
    outcomes = study.trainer.run(sample, jobs, "transfer")
    truth = sample.labels[test]
    before = judged_logits(in_batches(network(weights), sample.images, rows=test), truth)
    rows = [replace(jobs[0].row(numbers("transfer", "before", before), "before"), n_train=0, epochs=0)]
    for job, outcome in zip(jobs, outcomes, strict=True):
        rows.append(job.row(numbers("transfer", job.name, judged_logits(outcome.scores, truth))))
    recipe = scale.transfer
    return Section(
        name="transfer",
        title="Transfer to a second survey",
        tables=(Table(title=f"On {len(test)} cut-outs of the second survey", rows=tuple(rows)),),
        pictures=(figures.transfer(rows[0], rows[1:-1]),),
        notes=(
            f"From {study.first.origin} ({study.first.fov_arcsec:g} arcsec, {study.first.stretch}) to {sample.origin} "
            f"({sample.fov_arcsec:g} arcsec, {sample.stretch}); all layers are trained, {recipe.optimizer} at "
            f"{recipe.learning_rate:g}, batches of {recipe.batch_size}.",
            "The last row starts from initial weights: what the second survey's examples give alone.",
        ),
        training_seconds=sum(outcome.seconds for outcome in outcomes),
    )


def _job(study: Study, pool: Rows, test: Rows, size: int, start: bytes | None) -> NetworkJob:
    return NetworkJob(
        name=f"after, {size} examples" if start else f"{size} examples, from initial weights",
        labels=study.second.labels,
        train=examples(study.second.labels, pool, size, study.seed),
        validation=test[:WATCHED_ROWS],
        test=test,
        recipe=study.scale.transfer.model_copy(update={"seed": study.seed}),
        start=start,
    )
