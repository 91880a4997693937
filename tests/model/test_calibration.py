"""Probabilities mean what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from deepshadows.model.calibration import FLATTEST, at_prevalence, fit_platt
from deepshadows.model.metrics import Judged, judge


def drawn(slope: float, intercept: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels follow the given curve, with equal classes."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-intercept / slope, 2.0, count).astype(np.float32)
    return logits, (rng.random(count) < expit(slope * logits + intercept)).astype(np.int8)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, 0.7), (2.5, -1.5)])
def test_a_known_slope_and_intercept_are_found(slope: float, intercept: float) -> None:
    fitted = fit_platt(*drawn(slope, intercept))
    assert fitted.slope == pytest.approx(slope, rel=0.05)
    assert fitted.intercept == pytest.approx(intercept, abs=0.05)


def test_calibration_is_for_equal_classes_whatever_the_sample() -> None:
    logits, labels = drawn(1.0, 0.0)
    rare = (labels == 0) | (np.arange(len(labels)) % 10 == 0)
    fitted = fit_platt(logits[rare], labels[rare])
    assert fitted.slope == pytest.approx(1.0, rel=0.05)
    assert fitted.intercept == pytest.approx(0.0, abs=0.07)


def test_separable_classes_give_finite_values() -> None:
    logits = np.array([-3, -2, -1, 1, 2, 3], np.float32)
    fitted = fit_platt(logits, np.array([0, 0, 0, 1, 1, 1], np.int8))
    assert 0 < fitted.slope < 100


def test_the_order_of_the_logits_is_never_turned_round() -> None:
    logits, labels = drawn(1.0, 0.0)
    fitted = fit_platt(logits + 3, 1 - labels)
    p = expit(fitted.slope * (logits + 3) + fitted.intercept)
    assert fitted.slope == FLATTEST
    assert (np.diff(p[np.argsort(logits)]) >= 0).all()
    assert abs(p - 0.5).max() < 0.05
    found = judge(Judged(probabilities=p, labels=1 - labels), 0.5, resamples=0)
    assert found["auc"] is not None and found["auc"] < 0.2


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    labels = np.array([1, 1, 1, 0, 0, 0], np.int8)
    # bin of 0.9: |3.6 - 3| = 0.6; bin of 0.1: |0.2 - 0| = 0.2
    found = judge(Judged(probabilities=probabilities, labels=labels), 0.5, resamples=0)
    assert found["ece"] == pytest.approx((0.6 + 0.2) / 6)
    perfect = Judged(probabilities=np.array([0.0, 1.0]), labels=np.array([0, 1], np.int8))
    assert judge(perfect, 0.5, resamples=0)["ece"] == 0


def test_prevalence_by_hand() -> None:
    # even odds at 1:1 become 5:95 at 5 percent
    np.testing.assert_allclose(at_prevalence(np.array([0.5, 0.95]), 0.05), [0.05, 0.5])


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_prevalence_there_and_back(probability: float, prior: float, other: float) -> None:
    there = at_prevalence(np.array([probability]), prior, calibrated_at=other)
    back = at_prevalence(there, other, calibrated_at=prior)
    np.testing.assert_allclose(back, probability, rtol=1e-6)


def test_a_missing_score_stays_missing() -> None:
    assert np.isnan(at_prevalence(np.array([np.nan]), 0.1)).all()
