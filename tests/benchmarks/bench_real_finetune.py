"""What some 100 real labels buy: a network fine-tuned on four fifths of them, judged on the last fifth.

    python -m tests.benchmarks.bench_real_finetune --real DIR [CHECKPOINT] [--repeats 4] [--recipe finetune_few]

The recipe is one of `deepshadows finetune`: a quarter of the training rows chooses the epoch and calibrates. Each row
is judged once a repeat by a network that has not seen it; last, by the mean of its logits over the repeats, and that is
added to the card of the network that all start from: it is a look at these labels too. What the network says without
fine-tuning is told, and logged, by `bench_real_sky`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.model_selection import StratifiedKFold, train_test_split

from deepshadows.model import checkpoint
from deepshadows.model.calibration import fit_platt
from deepshadows.model.checkpoint import fill
from deepshadows.model.metrics import Judged
from deepshadows.model.network import DeepShadowsNet, in_batches
from deepshadows.model.training import Examples, Learner
from deepshadows.settings import DEFAULT_NETWORK, RECIPES, Recipe
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.shards import read_npz
from deepshadows.sky.stretch import stretch_named
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.bench_real_sky import LABELLED, SHOWN, figures_of, log

FOLDS = 5


def fine_tuned(net: DeepShadowsNet, images: NDArray[np.uint8], labels: NDArray[np.int8], recipe: Recipe) -> Learner:
    rows = np.arange(len(labels))
    _, held = train_test_split(rows, test_size=recipe.validation_fraction, stratify=labels, random_state=recipe.seed)
    examples = Examples(images=images, labels=labels, validation=np.isin(rows, held))
    learner = Learner(examples, recipe, start=copy.deepcopy(net))
    while not learner.finished:
        learner.run_epoch()
    fill(learner.net, learner.kept, "kept")
    return learner


def scaled_logits(learner: Learner, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Calibrated on the rows that the training held out."""
    held = np.flatnonzero(learner.examples.validation)
    platt = fit_platt(learner.logits(held), learner.examples.labels[held])
    return platt.slope * in_batches(learner.net, images).astype(np.float64) + platt.intercept


def told(name: str, found: dict[str, float]) -> str:
    cells = [f"{found[measure]:.3f} ({found[measure + '_lo']:.3f}-{found[measure + '_hi']:.3f})" for measure in SHOWN]
    return f"| {name} | {' | '.join(cells)} |"


def found_by(logits: NDArray[np.float64], labels: NDArray[np.int8]) -> dict[str, float]:
    return figures_of(Judged(probabilities=expit(logits), labels=labels), 0.5, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--recipe", default="finetune_few")
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT_NETWORK)
    wanted = parser.parse_args()
    print(machine())
    net, card = checkpoint.load(wanted.checkpoint)
    geometry = Geometry(fov_arcsec=card.fov_arcsec, bands=card.bands, stretch=stretch_named(card.stretch))
    cutouts = read_npz(str(wanted.real / f"{LABELLED}.npz"), geometry)
    images, labels = cutouts.images, cutouts.label
    assert labels is not None
    print(f"| network, {len(labels)} rows | {' | '.join(SHOWN)} |\n|---{'|---' * len(SHOWN)}|")
    logits = np.zeros((wanted.repeats, len(labels)))
    for repeat in range(wanted.repeats):
        recipe = RECIPES[wanted.recipe].model_copy(update={"seed": repeat + 1})
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=repeat).split(labels, labels):
            learner = fine_tuned(net, images[train], labels[train], recipe)
            logits[repeat, test] = scaled_logits(learner, images[test])
        print(told(f"fine-tuned, repeat {repeat + 1}", found_by(logits[repeat], labels)), flush=True)
    figures = found_by(logits.mean(axis=0), labels)
    print(told(f"fine-tuned, mean of {wanted.repeats}", figures))
    layers = RECIPES[wanted.recipe].trainable
    sample = f"{LABELLED}, cross-validated fine-tuning: layers {layers}, {FOLDS} folds, {wanted.repeats} repeats"
    log(wanted.checkpoint, card, figures, sample)


if __name__ == "__main__":
    main()
