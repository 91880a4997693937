"""The weights that come with the package: found by name, whole, small, and better than chance on a sky of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from deepshadows.model import checkpoint, shipped, uncertainty
from deepshadows.model.metrics import Judged, judge
from deepshadows.model.scorer import load_scorer
from deepshadows.settings import DEFAULT_NETWORK, RECIPES, Classify, Finetune, Quickstart, Recipe
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.stretch import stretch_named
from deepshadows.verbs.simulate_cutouts import labelled_cutouts
from tests.benchmarks.bench_domain import wrong_images

SHIPPED = ("deepshadows-v2", "deepshadows-2020")
UNSEEN_SEED = 77_001
MOST_BYTES = 25e6
TILES = 12


def test_the_default_network_is_shipped() -> None:
    assert shipped.names() == sorted(SHIPPED)
    assert DEFAULT_NETWORK in SHIPPED
    assert Quickstart().checkpoint == Finetune(cutouts="a", output="b").from_checkpoint == DEFAULT_NETWORK
    assert Classify(input="a", output="b").checkpoint == DEFAULT_NETWORK


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_whole_and_states_how_it_was_made(name: str) -> None:
    net, card = checkpoint.load(name)
    assert uncertainty.read(name, card) is not None
    assert card.name == name
    recipe = RECIPES[card.recipe["name"]].model_copy(update={"weights": "float16"})
    assert {**Recipe().model_dump(), **card.recipe} == recipe.model_dump()
    assert card.training is not None
    assert card.training.classes == {"artifact": 20_000, "lsbg": 20_000}
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert card.metrics["n"] == card.training.validation_rows


def test_all_weights_together_are_small() -> None:
    assert sum(path.stat().st_size for path in shipped.WEIGHTS.rglob("*")) < MOST_BYTES


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_knows_a_sky_that_it_has_not_seen(name: str) -> None:
    scorer = load_scorer(name, precision="exact")
    geometry = Geometry(fov_arcsec=scorer.card.fov_arcsec, stretch=stretch_named(scorer.card.stretch))
    samples = [labelled_cutouts("des", number, UNSEEN_SEED, 1536, geometry).cutouts for number in range(3)]
    scores = np.concatenate([scorer.score(sample.images).p_lsbg for sample in samples])
    labels = np.concatenate([sample.label for sample in samples if sample.label is not None])
    assert len(labels) > 40
    assert roc_auc_score(labels, scores) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_keeps_its_promises(name: str) -> None:
    """Calibration error within 0.02 on simulated sky, and every kind of wrong image told from right ones: 0.95."""
    scorer = load_scorer(name, precision="exact")
    own = Geometry(fov_arcsec=scorer.card.fov_arcsec, stretch=stretch_named(scorer.card.stretch))
    samples = [labelled_cutouts("des", number, UNSEEN_SEED, 1536, own).cutouts for number in range(TILES)]
    right = np.concatenate([sample.images for sample in samples])
    scores = scorer.score(right)
    labels = np.concatenate([sample.label for sample in samples if sample.label is not None])
    found = judge(
        Judged(probabilities=scores.p_lsbg.astype(np.float64), labels=labels), 0.5, calibrated_at=0.5, resamples=0
    )
    assert found["ece"] is not None and found["ece_if_perfect"] is not None
    assert found["ece"] <= 0.02 + found["ece_if_perfect"]  # so few rows scatter
    for kind, images in wrong_images(own, right, TILES, UNSEEN_SEED).items():
        distance = np.concatenate([scores.domain_distance, scorer.score(images).domain_distance])
        assert roc_auc_score(np.arange(len(distance)) >= len(right), distance) >= 0.95, kind
