"""Measures against values worked out by hand, and what must hold for any scores."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from deepshadows.model.metrics import Judged, auc, judge
from deepshadows.outcomes import InputError

P = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
LABELS = np.array([1, 1, 0, 1, 1, 0, 0, 0], np.int8)
ROWS = Judged(probabilities=P, labels=LABELS)

scores = st.integers(2, 40).flatmap(
    lambda count: st.tuples(
        arrays(np.float64, count, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])),
        arrays(np.int8, count, elements=st.sampled_from([0, 1])),
    )
)


def test_by_hand() -> None:
    result = judge(ROWS, 0.5)
    assert (result["n"], result["threshold"]) == (8, 0.5)
    assert [result[name] for name in ("tn", "fp", "fn", "tp")] == [3, 1, 1, 3]
    assert result["accuracy"] == 0.75
    assert result["completeness"] == 0.75
    assert result["purity"] == 0.75
    assert result["auc"] == pytest.approx(14 / 16)  # 0.7 beats 0.6 and 0.4
    assert set(result) == {"n", "threshold"} | {
        f"{name}{end}"
        for name in ("accuracy", "completeness", "purity", "auc", "ece", "tn", "fp", "fn", "tp")
        for end in ("", "_lo", "_hi")
    } | {"ece_if_perfect"}


def test_the_papers_interval_follows_from_the_papers_counts() -> None:
    """TN/FP/FN/TP 2196/258/142/2404: accuracy .912-.928, completeness .935-.953, purity .891-.914."""
    labels = np.repeat([0, 0, 1, 1], [2196, 258, 142, 2404]).astype(np.int8)
    chosen = np.repeat([0.0, 1.0, 0.0, 1.0], [2196, 258, 142, 2404])
    result = judge(Judged(probabilities=chosen, labels=labels), 0.5)
    for name, value, low, high in (
        ("accuracy", 0.920, 0.912, 0.928),
        ("completeness", 0.944, 0.935, 0.953),
        ("purity", 0.903, 0.891, 0.914),
    ):
        assert result[name] == pytest.approx(value, abs=0.0006)
        assert result[f"{name}_lo"] == pytest.approx(low, abs=0.0015)
        assert result[f"{name}_hi"] == pytest.approx(high, abs=0.0015)


def test_equal_seeds_give_equal_intervals() -> None:
    assert judge(ROWS, 0.5, seed=4) == judge(ROWS, 0.5, seed=4)


def test_one_class_has_no_auc() -> None:
    result = judge(Judged(probabilities=P, labels=np.ones(8, np.int8)), 0.5)
    assert result["auc"] is result["auc_lo"] is result["auc_hi"] is None
    assert result["purity"] == 1.0
    artifacts = judge(Judged(probabilities=P, labels=np.zeros(8, np.int8)), 0.5)
    assert artifacts["completeness"] is None
    assert artifacts["purity"] == 0.0


def test_nothing_selected_has_no_purity() -> None:
    result = judge(ROWS, 0.95)
    assert (result["purity"], result["purity_lo"], result["completeness"]) == (None, None, 0.0)


def test_rows_without_score_are_not_selected_and_stay_out_of_auc_and_calibration() -> None:
    missing = Judged(
        probabilities=np.concatenate([P, [np.nan, np.nan]]), labels=np.concatenate([LABELS, [1, 0]]).astype(np.int8)
    )
    result, without = judge(missing, 0.5), judge(ROWS, 0.5)
    assert [result[name] for name in ("tn", "fp", "fn", "tp")] == [4, 1, 2, 3]
    assert (result["auc"], result["ece"]) == (without["auc"], without["ece"])
    nothing = judge(Judged(probabilities=np.full(4, np.nan), labels=LABELS[:4]), 0.5)
    assert (nothing["auc"], nothing["ece"], nothing["completeness"]) == (None, None, 0.0)


def test_nothing_to_judge_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="no labelled rows"):
        Judged(probabilities=np.empty(0), labels=np.empty(0, np.int8))
    with pytest.raises(InputError, match=r"found \[2\]"):
        Judged(probabilities=np.zeros(2), labels=np.array([0, 2], np.int8))


def test_a_prevalence_weighs_the_classes_by_hand() -> None:
    """At a threshold of 0.5 three of four LSBGs and one of four artifacts are selected."""
    result = judge(ROWS, 0.5, prevalence=0.05)
    assert result["purity_at_prevalence"] == pytest.approx(0.05 * 0.75 / (0.05 * 0.75 + 0.95 * 0.25))
    assert result["accuracy_at_prevalence"] == pytest.approx(0.05 * 0.75 + 0.95 * 0.75)
    assert result["purity"] == 0.75, "of the rows themselves"
    low, high = result["purity_at_prevalence_lo"], result["purity_at_prevalence_hi"]
    assert low is not None and high is not None
    assert low < result["purity_at_prevalence"] < high


def test_calibration_error_at_a_prevalence_by_hand() -> None:
    """Two LSBGs and two artifacts, all with p = 0.1: calibrated where a tenth are LSBGs, off by 0.4 among these."""
    rows = Judged(probabilities=np.full(4, 0.1), labels=np.array([0, 0, 1, 1], np.int8))
    assert judge(rows, 0.5)["ece"] == pytest.approx(0.4)
    assert judge(rows, 0.5, prevalence=0.1)["ece"] == pytest.approx(0, abs=1e-12)
    assert judge(rows, 0.5, prevalence=0.3)["ece"] == pytest.approx(0.2)
    calibrated = judge(rows, 0.5, calibrated_at=0.1)
    assert calibrated["ece"] == pytest.approx(0, abs=1e-12)
    assert "purity_at_prevalence" not in calibrated


@given(scores, st.floats(0.02, 0.98))
def test_purity_at_the_samples_own_share_is_its_purity(rows: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    probabilities, labels = rows
    share = labels.mean()
    if not 0 < share < 1:
        return
    result = judge(Judged(probabilities=probabilities, labels=labels), threshold, prevalence=float(share), resamples=0)
    for name in ("purity", "accuracy"):
        assert result[f"{name}_at_prevalence"] == (
            result[name] if result[name] is None else pytest.approx(result[name])
        )
    plain = judge(Judged(probabilities=probabilities, labels=labels), threshold, resamples=0)
    assert result["ece"] == pytest.approx(plain["ece"], abs=1e-12)


@given(scores, st.floats(0.02, 0.9), st.floats(1.01, 1.1))
def test_purity_grows_with_the_prevalence(
    rows: tuple[np.ndarray, np.ndarray], prevalence: float, factor: float
) -> None:
    judged = Judged(probabilities=rows[0], labels=rows[1])
    low = judge(judged, 0.5, prevalence=prevalence, resamples=0)["purity_at_prevalence"]
    high = judge(judged, 0.5, prevalence=prevalence * factor, resamples=0)["purity_at_prevalence"]
    if low is not None and high is not None:
        assert low <= high + 1e-12


def calibration_errors(shift: float, rows: int) -> Iterator[dict[str, float | int | None]]:
    """40 samples whose labels follow the logit less `shift`."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        logits = rng.normal(0, 2.5, rows)
        labels = (rng.random(rows) < 1 / (1 + np.exp(shift - logits))).astype(np.int8)
        yield judge(Judged(probabilities=1 / (1 + np.exp(-logits)), labels=labels), 0.5, resamples=100)


def test_the_interval_of_the_calibration_error_holds_the_true_one() -> None:
    """Percentiles of the resamples, which scatter once more, hold it in 1 of these 40 samples."""
    true = 0.0653  # mean of p(logit) - p(logit - 0.5) over N(0, 2.5)
    held = sum((result["ece_lo"] or 0) <= true <= (result["ece_hi"] or 0) for result in calibration_errors(0.5, 200))
    assert held >= 32


def test_perfect_probabilities_show_the_error_that_is_told() -> None:
    found = [(result["ece"], result["ece_if_perfect"]) for result in calibration_errors(0.0, 400)]
    shown, told = np.mean(np.array(found, float), axis=0)
    assert shown == pytest.approx(told, rel=0.1)


@given(scores)
def test_agrees_with_scikit_learn(rows: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = rows
    result = judge(Judged(probabilities=probabilities, labels=labels), 0.5, resamples=0)
    if len(set(labels)) == 2:
        assert result["auc"] == pytest.approx(roc_auc_score(labels, probabilities))
    selected = probabilities >= 0.5
    if labels.any():
        assert result["completeness"] == pytest.approx(recall_score(labels, selected))
    if selected.any():
        assert result["purity"] == pytest.approx(precision_score(labels, selected))


@given(scores, st.randoms(use_true_random=False))
def test_invariants(rows: tuple[np.ndarray, np.ndarray], random: object) -> None:
    """Counts add up, order does not matter, intervals are ordered and within [0, 1]."""
    probabilities, labels = rows
    judged = Judged(probabilities=probabilities, labels=labels)
    result = judge(judged, 0.5, resamples=50)
    assert sum(int(result[name] or 0) for name in ("tn", "fp", "fn", "tp")) == len(labels)
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = judge(Judged(probabilities=probabilities[order], labels=labels[order]), 0.5, resamples=0)
    for name in ("accuracy", "completeness", "purity", "auc", "ece"):
        assert shuffled[name] == pytest.approx(result[name])
        low, high = result[f"{name}_lo"], result[f"{name}_hi"]
        if low is not None and high is not None:
            assert 0 <= low <= high <= 1
    value = auc(judged)
    if value is not None:
        flipped = auc(Judged(probabilities=-probabilities, labels=labels))
        assert flipped == pytest.approx(1 - value)
