"""The drift check: a stable survey of scattering tiles is left in peace, each kind of drift is found."""

from __future__ import annotations

import numpy as np
import pytest

from deepshadows.catalog.drift import Sample, Training, distance, judge
from deepshadows.catalog.statistics import BINS, LOG_ODDS_EDGES

FEATURES = 4
NAMES = ("sum of z", "sum of r", "sum of g", "steps of 1 pixels")
TRAINING = Training(
    threshold=0.5, mean=np.full(FEATURES, 8.0), spread=np.full(FEATURES, 0.3), names=NAMES, kept=0.94, mistaken=0.066
)


def survey(
    units: int,
    seed: int,
    rows: int = 400,
    *,
    shift: float = 0.0,
    brighter: float = 0.0,
    outside: float = 0.03,
    regions: tuple[int, ...] = (7, 8),
) -> Sample:
    """Units whose scores, brightness and share out of the domain scatter from tile to tile, as those of surveys do."""
    rng = np.random.default_rng(seed)
    scores = np.zeros((units, BINS), np.int64)
    for unit in range(units):
        real = rng.random(rows) < 0.08
        log_odds = np.where(real, rng.normal(3, 1.5, rows), rng.normal(-4, 2, rows)) + shift + rng.normal(0, 0.15)
        scores[unit] = np.histogram(np.clip(log_odds, -10, 10), LOG_ODDS_EDGES)[0]
    share = np.clip(outside + rng.normal(0, 0.01, units), 0.001, 0.9)
    return Sample(
        rows=np.full(units, rows + 3),
        unscored=np.full(units, 3),
        out_of_domain=rng.binomial(rows, share),
        region=np.resize(np.array(regions), units),
        scores=scores,
        mean=8.0 + 0.3 * brighter + rng.normal(0, 0.06, (units, FEATURES)),
        spread=np.full((units, FEATURES), 0.3),
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("units", [1, 4, 60])
def test_a_stable_survey_does_not_alarm(units: int, seed: int) -> None:
    """1 % of new tiles or as many as before: tiles scatter, the survey is the same."""
    drift = judge(survey(units, 100 + seed), survey(100, seed), TRAINING)
    assert drift.findings
    assert drift.verdict == "stable", drift.line
    assert "none" in drift.line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shift": 2.0}, "scores"),
        ({"brighter": 1.5}, "images"),
        ({"outside": 0.2}, "out of domain"),
    ],
)
@pytest.mark.parametrize("units", [4, 60])
def test_each_kind_of_drift_alarms(change: dict[str, float], told: str, units: int) -> None:
    drift = judge(survey(units, 1, **change), survey(100, 2), TRAINING)  # type: ignore[arg-type]
    assert drift.verdict == "drift"
    assert drift.line.startswith("DRIFT: ")
    found = {(told in finding.what, finding.against) for finding in drift.alarms}
    assert (True, "version before") in found


def test_a_drift_in_one_region_is_found_there() -> None:
    added = survey(40, 1, regions=(7,))
    shifted = survey(2, 2, outside=0.6, regions=(8,))
    both = Sample(**{name: np.concatenate([values, getattr(shifted, name)]) for name, values in vars(added).items()})
    drift = judge(both, survey(100, 3), TRAINING)
    assert {finding.where for finding in drift.alarms} == {"Norder=3 Npix=8"}


def test_new_sky_is_judged_more_mildly() -> None:
    """Another part of the sky has other stars: the same shift alarms where the sky was known."""
    before = survey(100, 3)
    moved = {"shift": 1.6}
    assert judge(survey(20, 1, **moved, regions=(7,)), before, TRAINING).verdict == "drift"  # type: ignore[arg-type]
    assert judge(survey(20, 1, **moved, regions=(99,)), before, TRAINING).verdict == "stable"  # type: ignore[arg-type]


def test_the_training_set_is_a_reference_of_its_own() -> None:
    """A first version has no other."""
    assert judge(survey(10, 1), None, TRAINING).verdict == "stable"
    unlike = judge(survey(10, 1, brighter=3.0, outside=0.3), None, TRAINING)
    assert {finding.against for finding in unlike.alarms} == {"training set"}
    assert {finding.what for finding in unlike.alarms} == {"images (mean, in spreads)", "share out of domain"}
    silent = judge(survey(10, 1, shift=-6.0), None, TRAINING)
    assert [finding.what for finding in silent.alarms] == ["scores (implied share of LSBGs, beyond 0 to 1)"]


def test_few_rows_and_no_reference_are_not_judged() -> None:
    drift = judge(survey(1, 1, rows=20), None, Training(threshold=0.5))
    assert (drift.verdict, drift.alarms) == ("not judged", ())
    assert "20 newly scored rows" in drift.line


def test_without_image_statistics_scores_are_judged_alone() -> None:
    """Networks without a domain leave no summaries."""

    def blind(sample: Sample) -> Sample:
        nothing = np.empty((len(sample.rows), 0))
        return Sample(**{**vars(sample), "mean": nothing, "spread": nothing})

    drift = judge(blind(survey(30, 1)), blind(survey(30, 2)), Training(threshold=0.5))
    assert not any("images" in finding.what for finding in drift.findings)
    assert drift.verdict == "stable"


def test_the_distance_of_two_samples_of_one_population_stays_below_what_chance_explains() -> None:
    rng = np.random.default_rng(5)
    for rows in (300, 3_000, 30_000):
        for _ in range(50):
            one, other = (np.histogram(rng.normal(-4, 2, rows), LOG_ODDS_EDGES)[0] for _ in range(2))
            value, chance = distance(one, other)
            assert value < chance
