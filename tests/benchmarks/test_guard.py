"""The guard of a fast engine, on logits whose differences are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from deepshadows.model.card import Card
from tests.benchmarks.guard import agreement

CARD = Card(name="untrained")
ROWS = 4_000


def reference() -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Logits well away from the threshold, and labels that follow them."""
    rng = np.random.default_rng(1)
    labels = (np.arange(ROWS) % 2).astype(np.int8)
    return np.where(labels == 1, 3, -3).astype(np.float32) + rng.uniform(-1, 1, ROWS).astype(np.float32), labels


def test_equal_scores_pass() -> None:
    logits, labels = reference()
    found = agreement(CARD, logits, logits, labels)
    assert found.good
    assert (found.largest, found.flipped, found.auc_apart) == (0.0, 0, 0.0)


@pytest.mark.parametrize(("flips", "good"), [(2, True), (3, False)])
def test_one_decision_in_2000_may_flip(flips: int, good: bool) -> None:
    logits, labels = reference()
    labels[:] = -1
    labels[-2:] = 0, 1
    near = logits.copy()
    logits[:flips], near[:flips] = 0.001, -0.001
    assert CARD.threshold == 0.5
    found = agreement(CARD, near, logits, labels)
    assert (found.flipped, found.good) == (flips, good)
    assert found.largest < 0.001


@pytest.mark.parametrize(("far", "good"), [(4, True), (5, False)])
def test_one_score_in_1000_may_be_far(far: int, good: bool) -> None:
    logits, labels = reference()
    moved = logits.copy()
    moved[:far] *= 0.5
    found = agreement(CARD, moved, logits, labels)
    assert found.largest > 0.02
    assert (found.flipped, found.auc_apart, found.good) == (0, 0.0, good)


def test_the_median_and_the_auc_count() -> None:
    logits, labels = reference()
    assert not agreement(CARD, logits * np.float32(0.95), logits, labels).good
    swapped = labels.copy()
    swapped[0] = 1
    some = logits.copy()
    some[0] = -2.9999
    beside = some.copy()
    beside[0] = -3.01
    found = agreement(CARD, beside, some, swapped)
    assert found.auc_apart > 0
    assert not agreement(CARD, logits, logits, np.full(ROWS, -1, np.int8)).good, "an AUC that is not known"
