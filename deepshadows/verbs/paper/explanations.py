"""Grad-CAM and HiResCAM: where the network looked in its most confident right and wrong decisions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from deepshadows.model.explanation import heat_maps
from deepshadows.settings import HeatMap
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.findings import Section
from deepshadows.verbs.paper.samples import Rows
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import network

SHOWN = 4
OUTCOMES = {
    "true positives": (1, 1),
    "true negatives": (0, 0),
    "false positives": (0, 1),
    "false negatives": (1, 0),
}
"""True and predicted class of each panel."""
METHODS: dict[HeatMap, str] = {"grad-cam": "Grad-CAM", "hires-cam": "HiResCAM"}


def most_confident(logits: NDArray[np.float32], labels: NDArray[np.int8], count: int) -> dict[str, Rows]:
    """Rows of each kind of decision, the surest first, at most `count` of each."""
    predicted = logits >= 0
    order = np.argsort(-np.abs(logits), kind="stable")
    return {
        name: order[((labels == true) & (predicted == bool(said)))[order]][:count]
        for name, (true, said) in OUTCOMES.items()
    }


def explanations(study: Study) -> Section:
    """Heat maps of the surest decisions of each kind."""
    outcome = study.binary
    assert outcome.weights is not None, "the study's own seed keeps its weights"
    test = study.parts.test
    chosen = most_confident(outcome.scores, study.first.labels[test], SHOWN)
    net = network(outcome.weights)
    panels = []
    for name, rows in chosen.items():
        if not len(rows):
            continue
        images = study.first.images[test[rows]]
        panels.append(
            figures.Panel(
                title=name,
                images=images,
                heat={title: heat_maps(net, images, method) for method, title in METHODS.items()},
                p_lsbg=expit(outcome.scores[rows].astype(float)),
            )
        )
    absent = [name for name, rows in chosen.items() if not len(rows)]
    return Section(
        name="grad_cam",
        title="Where the network looked",
        pictures=(figures.heat_maps(panels),),
        notes=(
            "The last convolution in the most confident decisions on the test rows. In the paper, predicted artifacts "
            "light up on bright sources off centre, LSBGs on a central blob, and confident false positives look like "
            "real galaxies: label noise.",
            "Grad-CAM, the paper's method, gives a channel one weight for all places and is empty where these speak "
            "against the class in sum. The network judges by place, and HiResCAM (Draelos & Carin 2020, "
            "arXiv:2011.08891) weighs place by place.",
            f"{len(test)} test rows, {study.scale.recipe.epochs} epochs; p is the network's sigmoid, not calibrated.",
            *([f"there are no {', no '.join(absent)}"] if absent else []),
        ),
        details={name: [int(test[row]) for row in rows] for name, rows in chosen.items()},
        training_seconds=outcome.seconds,
    )
