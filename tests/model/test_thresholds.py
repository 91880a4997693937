"""Thresholds for a wanted purity or completeness, against hand-worked cases and against trying each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deepshadows.model.metrics import Judged, judge
from deepshadows.model.thresholds import choose_threshold
from deepshadows.outcomes import InputError

P = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
LABELS = np.array([1, 1, 0, 1, 1, 0, 0, 0], np.int8)
ROWS = Judged(probabilities=P, labels=LABELS)

judged_rows = st.integers(1, 30).flatmap(
    lambda count: st.builds(
        lambda p, labels: Judged(probabilities=p, labels=labels),
        arrays(np.float64, count, elements=st.sampled_from([np.nan, 0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])),
        arrays(np.int8, count, elements=st.sampled_from([0, 1])),
    )
)
prevalences = st.none() | st.sampled_from([0.05, 0.3, 0.5])


def chosen(rows: Judged, **wanted: float | None) -> float:
    threshold = choose_threshold(rows, **wanted, resamples=0)["threshold"]
    assert threshold is not None
    return threshold


def test_purity_by_hand() -> None:
    assert chosen(ROWS, purity=0.75) == 0.4  # 4 of 5
    assert chosen(ROWS, purity=0.81) == 0.8  # 2 of 2
    assert chosen(ROWS, purity=0.5) == 0.1  # all: 4 of 8
    # among 5 percent LSBGs one false positive of four weighs 0.25 * 0.95
    assert chosen(ROWS, purity=0.5, prevalence=0.05) == 0.8
    with pytest.raises(InputError, match=r"a purity of 0\.9; the highest is 0\.500"):
        chosen(Judged(probabilities=np.array([0.9, 0.1]), labels=np.array([0, 1], np.int8)), purity=0.9)


def test_completeness_by_hand() -> None:
    assert chosen(ROWS, completeness=0.25) == 0.9
    assert chosen(ROWS, completeness=0.5) == 0.8
    assert chosen(ROWS, completeness=0.51) == 0.6  # 3 of 4
    lost = Judged(probabilities=np.r_[P, np.nan], labels=np.r_[LABELS, 1].astype(np.int8))
    assert chosen(lost, completeness=0.6) == 0.6  # an LSBG without a score is lost: 3 of 5
    with pytest.raises(InputError, match=r"a completeness of 0\.9; the highest is 0\.800"):
        chosen(lost, completeness=0.9)


def test_no_scores_no_threshold() -> None:
    with pytest.raises(InputError, match="no row has a score"):
        chosen(Judged(probabilities=np.full(2, np.nan), labels=np.array([0, 1], np.int8)), completeness=0.5)


def measured(rows: Judged, threshold: float, prevalence: float | None) -> tuple[float | None, float | None]:
    result = judge(rows, threshold, prevalence=prevalence, resamples=0)
    purity = result["purity"] if prevalence is None else result["purity_at_prevalence"]
    return purity, result["completeness"]


@settings(deadline=None)
@given(judged_rows, st.floats(0.05, 0.99), prevalences)
def test_purity_against_trying_each(rows: Judged, purity: float, prevalence: float | None) -> None:
    """The lowest threshold that is pure enough: none below it is, and where none is found none is there."""
    if prevalence is not None and len(set(rows.labels)) < 2:
        return
    tried = {
        float(p): measured(rows, p, prevalence) for p in np.unique(rows.probabilities[np.isfinite(rows.probabilities)])
    }
    good = [p for p, (pure, complete) in tried.items() if complete and pure is not None and pure >= purity]
    try:
        threshold = chosen(rows, purity=purity, prevalence=prevalence)
    except InputError:
        assert not good
        return
    assert threshold == min(good)


@settings(deadline=None)
@given(judged_rows, st.floats(0.05, 0.99))
def test_completeness_against_trying_each(rows: Judged, completeness: float) -> None:
    tried = {
        float(p): measured(rows, p, None)[1] for p in np.unique(rows.probabilities[np.isfinite(rows.probabilities)])
    }
    good = [p for p, complete in tried.items() if complete is not None and complete >= completeness]
    try:
        threshold = chosen(rows, completeness=completeness)
    except InputError:
        assert not good
        return
    assert threshold == max(good)


def gaussian_rows(count: int, seed: int) -> Judged:
    """Scores of equal classes with an AUC of 0.92."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.5).astype(np.int8)
    return Judged(probabilities=1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1.0) * 2)), labels=labels)


@pytest.mark.parametrize("wanted", [{"purity": 0.9}, {"completeness": 0.9}, {"purity": 0.5, "prevalence": 0.05}])
def test_intervals_hold_what_a_large_sample_shows(wanted: dict[str, float]) -> None:
    """The threshold of 100,000 rows lies in the interval of 1,000; on new rows the wanted value comes about."""
    truth = choose_threshold(gaussian_rows(100_000, 1), **wanted, resamples=0)["threshold"]
    held, seen = 0, []
    for seed in range(20):
        result = choose_threshold(gaussian_rows(1000, 10 + seed), **wanted, resamples=100)
        low, high, threshold = result["threshold_lo"], result["threshold_hi"], result["threshold"]
        assert low is not None and high is not None and threshold is not None and truth is not None
        assert low <= high
        held += low <= truth <= high
        seen.append(result["unseen_purity"] if "purity" in wanted else result["unseen_completeness"])
        assert result["unreached"] == 0
    assert held >= 15
    assert np.mean(seen) == pytest.approx(wanted.get("purity", wanted.get("completeness")), abs=0.04)


def test_what_few_resamples_reach_is_told() -> None:
    """One artifact scores highest: a selection is pure only where a resample lacks it."""
    labels = np.array([0, *[1] * 9], np.int8)
    rows = Judged(probabilities=np.linspace(1, 0.1, 10), labels=labels)
    result = choose_threshold(rows, purity=0.9, resamples=400)
    assert result["threshold"] == 0.1
    assert result["unreached"] is not None
    assert 0.1 < result["unreached"] < 0.9
    assert choose_threshold(rows, purity=0.9, resamples=400) == result, "the same seed gives the same"
