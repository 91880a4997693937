"""Measures against values worked out by hand, and what must hold for any scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from deepshadows.model.metrics import Judged, auc, judge, threshold_for_purity
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
    }


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


def test_threshold_for_purity_by_hand() -> None:
    assert threshold_for_purity(ROWS, 0.75) == 0.4  # 4 of 5
    assert threshold_for_purity(ROWS, 0.81) == 0.8  # 2 of 2
    assert threshold_for_purity(ROWS, 0.5) == 0.1  # all: 4 of 8
    # among 5 percent LSBGs one false positive of four weighs 0.25 * 0.95
    assert threshold_for_purity(ROWS, 0.5, prevalence=0.05) == 0.8
    with pytest.raises(InputError, match="no threshold reaches a purity"):
        threshold_for_purity(Judged(probabilities=np.array([0.9, 0.1]), labels=np.array([0, 1], np.int8)), 0.9)


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


@given(scores, st.floats(0.05, 0.99))
def test_a_chosen_threshold_is_as_pure_as_wanted(rows: tuple[np.ndarray, np.ndarray], purity: float) -> None:
    judged = Judged(probabilities=rows[0], labels=rows[1])
    try:
        threshold = threshold_for_purity(judged, purity)
    except InputError:
        return
    reached = judge(judged, threshold, resamples=0)["purity"]
    assert reached is not None
    assert reached >= purity
